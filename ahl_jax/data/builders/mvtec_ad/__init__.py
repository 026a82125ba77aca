"""MVTec AD: fifteen categories of objects and textures."""

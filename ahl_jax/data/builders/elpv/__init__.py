"""ELPV: electroluminescence images of solar cells."""

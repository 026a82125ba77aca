"""AITEX: strips of woven fabric."""

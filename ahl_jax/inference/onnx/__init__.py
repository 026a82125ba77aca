"""Functions of JAX as ONNX models: a jaxpr, primitive by primitive.

``convert.to_onnx`` traces a function and walks through its jaxpr; ``rules`` has one rule for each
primitive; ``graph`` collects the nodes. A detector is written by ``ahl_jax.inference.export``.
"""

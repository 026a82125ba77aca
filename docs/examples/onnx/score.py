"""Score images with a file of `ahl export RUN model.onnx`: Pillow, NumPy and a runtime are enough.

pip install pillow numpy onnxruntime        # or openvino
python score.py model.onnx part.png other.png
python score.py model.onnx *.png --runtime openvino --threshold 2.5
"""

import argparse

import numpy as np
from PIL import Image, ImageOps


def read(path, size):
    """An image as `ahl predict` reads it: upright, RGB, 16 bits and floats as 0 to 255."""
    with open(path, "rb") as file:
        image = Image.open(file)
        image.draft(None, (2 * size, 2 * size))
        image.load()
    image = ImageOps.exif_transpose(image)
    if not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    values = np.asarray(image)
    if image.mode == "F":
        values = values * np.float32(255 if values.max() <= 1 else 1)
        if abs(values - np.rint(values)).max() < 1e-3:
            values = np.rint(values).astype(np.uint8)
    elif image.mode == "I" and values.max() <= 255:
        values = values.astype(np.uint8)
    else:
        values = values.astype(np.float32) / 257
    grey = np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BILINEAR))
    return np.rint(grey).clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


def onnxruntime_model(path):
    """The side of the images, and a function of images and options that gives arrays by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # It warns that an input has a default.
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images, threshold=None):
        given = {"images": images}
        if threshold is not None:
            given["set_threshold"] = np.array(threshold, np.float32)
        return dict(zip(names, session.run(names, given), strict=True))

    return session.get_inputs()[0].shape[1], run


def openvino_model(path):
    """The same with OpenVINO, which takes the threshold in the file for a constant."""
    import openvino

    # By itself it computes in bfloat16 where the CPU can, and scores differ.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", precision)

    def run(images, threshold=None):
        found = model({"images": images})
        found = {output.any_name: found[output] for output in model.outputs}
        if threshold is not None:
            found["threshold"] = np.float32(threshold)
            found["decision"] = ~(found["score"] <= threshold)
        return found

    return model.input("images").partial_shape[1].get_length(), run


def main():
    """Print a line for each image: its path, score and decision."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--threshold", type=float)
    args = parser.parse_args()
    load = {"onnxruntime": onnxruntime_model, "openvino": openvino_model}[args.runtime]
    size, run = load(args.model)
    for start in range(0, len(args.images), 16):
        paths = args.images[start : start + 16]
        found = run(np.stack([read(path, size) for path in paths]), args.threshold)
        for path, score, anomaly in zip(paths, found["score"], found["decision"], strict=True):
            print(f"{path}\t{score:.4f}\t{'anomaly' if anomaly else 'normal'}")


if __name__ == "__main__":
    main()

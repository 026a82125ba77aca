"""Score images with a file of `ahl export RUN model.onnx`: Pillow, NumPy and a runtime are enough.

pip install pillow numpy onnxruntime        # or openvino
python score.py model.onnx part.png other.png
python score.py model.onnx *.png --runtime openvino --threshold 2.5

`read` and `framing` are for a file of JAX, model.bin, too.
"""

import argparse
import json
import math
import os
import sys

import numpy as np
from PIL import Image, ImageOps


def read(path, width, height, crop=None, keep_aspect=False):
    """A photograph as `ahl predict` reads it: upright, RGB, 16 bits and floats as 0 to 255.

    The crop (left, top, width and height in pixels), or all of it, becomes width x height pixels,
    within a grey margin where it is to keep its aspect.
    """

    def fitted(w, h):
        scale = min(width / w, height / h)
        kept = max(1, round(w * scale)), max(1, round(h * scale))
        return kept if keep_aspect else (width, height)

    def placed(image):
        left, top, w, h = crop or (0, 0, *image.size)
        w2, h2 = fitted(w, h)
        part = image.resize((w2, h2), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
        canvas = Image.new(image.mode, (width, height), "#747474")
        canvas.paste(part, ((width - w2) // 2, (height - h2) // 2))
        return np.asarray(canvas)

    with open(path, "rb") as file:
        image = Image.open(file)
        if crop is None:
            # EXIF's orientations from 5 on exchange width and height.
            turn = -1 if image.getexif().get(0x0112, 1) > 4 else 1
            w, h = fitted(*image.size[::turn])[::turn]
            image.draft(None, (2 * w, 2 * h))
        image.load()
    image = ImageOps.exif_transpose(image)
    if not image.mode.startswith(("I", "F")):
        return placed(image.convert("RGB"))
    values = np.asarray(image)
    if image.mode == "F":
        values = values * np.float32(255 if values.max() <= 1 else 1)
        if abs(values - np.rint(values)).max() < 1e-3:
            values = np.rint(values).astype(np.uint8)
    elif image.mode == "I" and values.max() <= 255:
        values = values.astype(np.uint8)
    else:
        values = values.astype(np.float32) / 257
    grey = placed(Image.fromarray(values))
    return np.rint(grey).clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


def framing(height, width, said):
    """What `read` takes: as a model's file says, or else, in earlier ones, the size alone."""
    return json.loads(said) if said.startswith("{") else {"width": width, "height": height}


def onnxruntime_model(path):
    """How to read photographs, and a function of such images that gives arrays by name."""
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

    said = session.get_modelmeta().custom_metadata_map.get("frame", "")
    return framing(*session.get_inputs()[0].shape[1:3], said), run


def openvino_model(path):
    """The same with OpenVINO, which takes the threshold in the file for a constant."""
    import openvino

    core = openvino.Core()
    file = core.read_model(path)
    # By itself it computes in bfloat16 where the CPU can, and scores differ.
    model = core.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images, threshold=None):
        found = model({"images": images})
        found = {output.any_name: found[output] for output in model.outputs}
        if threshold is not None:
            found["threshold"] = np.float32(threshold)
            found["decision"] = ~(found["score"] <= threshold)
        return found

    where = ["framework", "frame"]
    said = file.get_rt_info(where).astype(str) if file.has_rt_info(where) else ""
    sides = [file.input("images").partial_shape[axis].get_length() for axis in (1, 2)]
    return framing(*sides, said), run


def file(text):
    """The path of a file, for argparse."""
    if os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is a folder; name its files, as {text}/*.png")
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text} is no file")
    return text


def number(text):
    """A finite number, for argparse."""
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return float(text)


def loaded(model, path):
    """What `model` makes of a file; where it cannot, a sentence ends the program."""
    try:
        return model(path)
    except ImportError:
        raise
    except Exception as error:  # Runtimes raise nearly anything.
        hint = ", or its .bin is not beside it" if path.endswith(".xml") else ""
        tell(f"{path} is no model of `ahl export` or quantize.py{hint}", error)
        sys.exit(2)


def photographs(paths, frame):
    """Pairs of a path and its photograph as `read` reads it; says which cannot be read."""
    pairs = []
    for path in paths:
        try:
            pairs.append((path, read(path, **frame)))
        except Exception as error:  # Decoders raise nearly anything.
            tell(f"left out: {path} cannot be read as a photograph", error)
    return pairs


def tell(sentence, error):
    """Print a sentence and the last line of an exception's message.

    Runtimes begin theirs with places in their own code.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print(f"{sentence} ({lines[-1] if lines else type(error).__name__})", file=sys.stderr)


def main():
    """Print a line for each image: its path, score and decision."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=file)
    parser.add_argument("images", type=file, nargs="+")
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--threshold", type=number)
    args = parser.parse_args()
    if args.model.endswith(".xml") and args.threshold is None:
        parser.error("give --threshold as quantize.py printed it; the file's is for float32 scores")
    # OpenVINO alone reads its own files.
    own = args.model.endswith(".xml") or args.runtime == "openvino"
    frame, run = loaded(openvino_model if own else onnxruntime_model, args.model)
    scored = 0
    for start in range(0, len(args.images), 16):
        pairs = photographs(args.images[start : start + 16], frame)
        if not pairs:
            continue
        paths, images = zip(*pairs, strict=True)
        found = run(np.stack(images), args.threshold)
        for path, score, anomaly in zip(paths, found["score"], found["decision"], strict=True):
            print(f"{path}\t{score:.4f}\t{'anomaly' if anomaly else 'normal'}")
        scored += len(pairs)
    sys.exit(2 if scored < len(args.images) else 0)


if __name__ == "__main__":
    main()

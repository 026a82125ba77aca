"""Write a file of `ahl export RUN model.onnx` with convolutions of 8 bits (INT8), for OpenVINO.

pip install pillow numpy openvino nncf
python quantize.py model.onnx model-int8.xml new_good/*.png
python score.py model-int8.xml part.png --threshold 3.7

score.py is beside this file. Give photographs of good parts that training has not seen. Scores of 8
bits differ from those of float32, so they need a threshold of their own; this prints one.
"""

import argparse
import logging
import os

import nncf
import numpy as np
import openvino
from score import file, loaded, openvino_model, photographs


def quantized(model, images):
    """An OpenVINO model whose convolutions are of 8 bits, by the ranges of some images.

    The detector behind them stays float32: distances divide by deviations that are as small as
    the steps of 8 bits.
    """
    kinds = {each.get_type_name() for each in model.get_ordered_ops()}
    kept = sorted(kinds - {"Convolution", "GroupConvolution", "Constant", "Parameter", "Result"})
    return nncf.quantize(
        model,
        nncf.Dataset([{"images": image[None]} for image in images]),
        subset_size=len(images),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(types=kept, validate=False),
    )


def main():
    """Quantise, and print the scores of the photographs before and after."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=file, help="a file of `ahl export`, .onnx")
    parser.add_argument("out", help="a name in .xml; the weights go beside it, in .bin")
    parser.add_argument("images", type=file, nargs="+")
    args = parser.parse_args()
    for name, end in ((args.model, ".onnx"), (args.out, ".xml")):
        if not name.endswith(end):
            parser.error(f"{name} does not end in {end}")
    if not os.access(os.path.dirname(args.out) or ".", os.W_OK):
        parser.error(f"{args.out} cannot be written; name a file in a folder of yours")
    nncf.set_log_level(logging.ERROR)
    frame, before = loaded(openvino_model, args.model)
    images = [image for _, image in photographs(args.images, frame)]
    if not images:
        parser.error("none of the images can be read")
    openvino.save_model(quantized(openvino.Core().read_model(args.model), images), args.out)
    _, after = openvino_model(args.out)
    for name, run in {"float32": before, "INT8": after}.items():
        scores = np.concatenate([run(image[None])["score"] for image in images])
        median, highest = np.median(scores), scores.max()
        print(f"{name}: the median score is {median:.3f}, the highest {highest:.3f}")
    # Upwards, so that the highest is normal.
    threshold, rate = np.ceil(1000 * highest) / 1000, 100 / (len(scores) + 1)
    print(f"--threshold {threshold:.3f} calls about {rate:.1f} % of such images anomalies")


if __name__ == "__main__":
    main()

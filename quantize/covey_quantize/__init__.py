"""Covey's quantization pipeline: one trained model in, measured and checked files for edge runtimes out.

load -> export -> calibrate -> quantize -> measure -> package. Three ways in, one engine:

    covey-quantize model.onnx --calibration data.npz --out release/        the command, cli.py
    from covey_quantize.pipeline import quantize_model                     Python
    python -m covey_quantize.worker                                        a child process that speaks JSON lines, for the server

This file imports nothing, because the child processes that measure a model's memory import it too.
"""

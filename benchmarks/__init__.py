"""Benchmarks of the kernels, the training step and whole images, beside their peers.

    python -m benchmarks ops | training | inference | transfer | all   measure, write one file
    python -m benchmarks scaling                                       ranks of MPI, workers
    python -m benchmarks compare A.json B.json                         what got slower, if anything
    python -m benchmarks ab REV1 REV2                                  two revisions, in turns
    python -m benchmarks report [FILE ...]                             tables, plots, the docs
    python -m benchmarks gpu-session                                   all that needs a GPU

Files, each importing only from those above it:

======================  ==========================================================================
``results.py``          the schema: one file format for CPU and GPU, every sample kept
``machine.py``          what was measured on, and how busy it was with other work
``cases.py``            what is measured: data, float64 answers, nominal operations and bytes
``ours.py``             what computes it: reference, numpy, lessons, production, your own file
``peers.py``            PyTorch, ONNX Runtime, OpenVINO, ncnn, LiteRT
``gpu.py``              CUDA versions, the cupy backend, PyTorch on CUDA; timing by events
``roofs.py``            what the machine can do: sgemm, an FMA loop, a triad
``worker.py``           the process of one implementation: check, warm up, take turns
``runner.py``           starts the workers, shuffles their turns, watches the noise
``scaling.py``          ranks of MPI and workers of upscale, and a model for more of them
``verdicts.py``         SAME, FASTER, SLOWER or UNCLEAR
``report.py``           tables, and the numbers between the markers of the docs
``plots.py``            the plots
======================  ==========================================================================

``docs/benchmarks.md`` says how to use them and what the numbers mean.
"""

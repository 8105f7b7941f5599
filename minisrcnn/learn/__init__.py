"""Exercises: write the gradients of a convolution yourself, graded by the gradient checker.

:mod:`~minisrcnn.learn.course`
    The exercises, what a student gets of them, and the known mistakes of each.
:mod:`~minisrcnn.learn.grading`
    Runs a student's file and says what is wrong with it; a program of its own, in a process of its
    own.
``exercises/``
    One file each: the task, the solution with marked gaps, and how it is graded.
"""

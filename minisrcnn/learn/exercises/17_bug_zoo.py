"""Name the bug.

Six backward functions of a convolution layer, each with one mistake, and what the gradient checker
says of each (without its last line, which would name the mistake). Read the reports, with their worst
entries, and write down for each the letter of the mistake that made it:

    a  the kernel is flipped                     d  divided by the number of images
    b  not summed over the batch                 e  the factor 2 of the loss is missing
    c  in and out channels are exchanged         f  the mask of the ReLU is missing

Print the reports with `minisrcnn learn reports`.
"""

# gap: a letter for each report, such as {1: "a", 2: "b", ...}
ANSWERS = {1: "b", 2: "f", 3: "a", 4: "e", 5: "c", 6: "d"}
# end of gap


# ---- grading -----------------------------------------------------------------------------------
import numpy as np

from minisrcnn.engine.backends import reference
from minisrcnn.gradcheck import check_gradients
from minisrcnn.learn.grading import Wrong

MISTAKES = [
    ('1: "b"', '1: "d"', "Report 1: dw is wrong in many entries by different factors. Divided by N, "
     "all would be wrong by the same factor."),
    ('6: "d"', '6: "b"', "Report 6: every entry is the true one divided by 2, the number of images. A "
     "missing sum would be wrong by different factors."),
    ('4: "e"', '4: "d"', "Report 4: this is a loss, every entry half of the true one, for a batch of "
     "3."),
]
KEY = {1: "b", 2: "f", 3: "a", 4: "e", 5: "c", 6: "d"}
CONV = {"x": (2, 2, 4, 4), "w": (2, 2, 2, 2)}


def _forward(x, w):
    return reference.conv2d_forward(x, w, np.zeros(len(w)))


def _dw(change):
    return _forward, lambda dy, x, w: change(x, dy), CONV, ["w"]


def cases():
    backward = reference.conv2d_backward_weight
    relu = reference.relu_forward
    return {
        1: _dw(lambda x, dy: backward(x[:1], dy[:1])),
        2: (lambda x: relu(x), lambda dy, x: dy * 1.0, {"x": (3, 5)}, ["x"]),
        3: _dw(lambda x, dy: np.ascontiguousarray(backward(x, dy)[:, :, ::-1, ::-1])),
        4: (lambda y, t: reference.mse(y, t)[0], lambda d, y, t: d * reference.mse(y, t)[1] / 2,
            {"y": (3, 1, 2, 2), "t": (3, 1, 2, 2)}, ["y"]),
        5: _dw(lambda x, dy: np.ascontiguousarray(backward(x, dy).swapaxes(0, 1))),
        6: _dw(lambda x, dy: backward(x, dy) / len(x)),
    }


def reports():
    """The reports, without the line that names the mistake."""
    texts = []
    for number, (forward, backward, given, wrt) in cases().items():
        report = check_gradients(forward, backward, given, wrt=wrt, raises=False,
                                 name=f"report {number}")
        texts.append("\n".join(line for line in str(report).splitlines()
                               if "likely mistake" not in line))
    return texts


def probe(student):
    return [[ord(student.ANSWERS.get(k, "?")) for k in KEY]]


def judge(student):
    wrong = [k for k, letter in KEY.items() if student.ANSWERS.get(k) != letter]
    if wrong:
        raise Wrong(f"{6 - len(wrong)} of 6 are right; look again at "
                    + ", ".join(f"report {k}" for k in wrong))

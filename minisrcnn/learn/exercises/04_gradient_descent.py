"""One step downhill, with momentum.

Equation (5) of the paper: the velocity D remembers the last step, and a part mu of it is taken
again (eta is the learning rate, g the gradient of the parameter w):

    D <- mu D - eta g          w <- w + D

Parameters and velocities are changed *in place*, since the layers hold these very arrays: write
`w += ...`, not `w = w + ...`.
"""


def sgd_step(parameters, gradients, velocities, eta, mu):
    """Three dicts of arrays with the same keys; changes parameters and velocities, returns None."""
    for name, w in parameters.items():
        g, D = gradients[name], velocities[name]
        # gap: the new velocity, then the new parameter, both in place
        D *= mu
        D -= eta * g
        w += D
        # end of gap


# ---- grading -----------------------------------------------------------------------------------
import numpy as np

from minisrcnn.learn.grading import Wrong, expect

MISTAKES = [
    ("D -= eta * g", "D += eta * g", "Uphill: the gradient points to where the loss grows, so it is "
     "subtracted."),
    ("D -= eta * g\n", "D -= g\n", "The learning rate is missing."),
    ("w += D", "w -= D", "The sign of the step: D already points downhill, so it is added."),
    ("w += D", "w = w + D", "A new array: `w = w + D` leaves the layer's own array as it was; "
     "`w += D` changes it."),
    ("D *= mu", "D *= 0", "The old velocity is forgotten: D starts from mu D."),
    ("w += D", "w += eta * D", "The learning rate is applied twice: once within D is enough."),
]


def start():
    rng = np.random.default_rng(5)
    make = lambda: {"weight": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)}  # noqa: E731
    return make(), [make() for _ in range(3)], make()


def steps(step):
    parameters, gradients, velocities = start()
    for g in gradients:
        step(parameters, g, velocities, 0.1, 0.9)
    return [parameters["weight"], velocities["weight"], parameters["bias"], velocities["bias"]]


def probe(student):
    return steps(student.sgd_step)


def judge(student):
    parameters, gradients, velocities = start()
    want = []
    for name in ("weight", "bias"):  # the recursion, unrolled: D_k = mu^k D_0 - eta sum mu^(k-i) g
        D = velocities[name]
        total = parameters[name]
        for k in range(1, 4):
            Dk = 0.9**k * D - 0.1 * sum(0.9 ** (k - 1 - i) * gradients[i][name] for i in range(k))
            total = total + Dk
        want += [total, Dk]
    got = steps(student.sgd_step)
    if all(np.array_equal(a, b) for a, b in zip(got[::2], start()[0].values(), strict=True)):
        raise Wrong("the parameters are what they were: nothing was changed in place")
    for a, b, what in zip(got, want, ("weight", "its velocity", "bias", "its velocity"),
                          strict=True):
        expect(a, b, f"after three steps: {what}")

"""Training on the device against a plain loop: patches cut by NumPy, gradients by PyTorch."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

from minisrcnn import SRCNN
from minisrcnn.engine.backends import get_backend, unavailable_reason
from minisrcnn.engine.emulator import ordering
from minisrcnn.engine.optim import DCTAdam, Muon

SIZE, LABEL, N, BATCHES = 11, 5, 2, 4
RATES = {"conv1": 1e-2, "conv2": 2e-2, "conv3.weight": 3e-3, "conv3.bias": 1e-3}


@pytest.fixture(scope="module")
def images():
    """Two images of different sizes; the second label is smaller by what the chain takes."""
    rng = np.random.default_rng(0)
    inputs = [rng.random((1, 20, 18)), rng.random((1, 16, 25))]
    labels = [rng.random((1, 20, 18)), rng.random((1, 10, 19))]
    return inputs, labels


TABLE = np.array([(0, 0, 0), (0, 9, 7), (1, 5, 14), (1, 2, 3), (0, 4, 4), (1, 0, 0)])
ORDER = np.array([3, 1, 4, 1, 5, 2, 0, 5])
CODES = np.arange(8)


def network(device, dtype="float64"):
    return SRCNN("5-1-3", (8, 4), backend=device, dtype=dtype, init="he", seed=1)


def trainer(device, images, dtype="float64", **options):
    options = {"batch_size": N, "patch_size": SIZE, "lr": RATES, "batches": BATCHES, **options}
    made = device.DeviceTrainer(network(device, dtype).parameters, *images, TABLE, **options)
    made.load_order(ORDER, CODES)
    return made


def cut(images, entry):
    """Cut one patch and its label by NumPy."""
    image, y, x = TABLE[ORDER[entry]]
    patch = images[0][image][:, y:y + SIZE, x:x + SIZE]
    margin = 3 if images[1][image].shape == images[0][image].shape else 0
    y, x = y + margin, x + margin
    pair = patch, images[1][image][:, y:y + LABEL, x:x + LABEL]
    if CODES[entry] >= 4:
        pair = tuple(a[:, :, ::-1] for a in pair)
    return [np.rot90(a, CODES[entry] % 4, axes=(1, 2)).copy() for a in pair]


def plain_loop(device, images, steps, optimizer, rates=lambda step: RATES, **options):
    """Train the same net with PyTorch's autograd and optimisers; return losses and parameters."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    leaves = {k: torch.tensor(device.to_numpy(v).copy(), requires_grad=True)
              for k, v in network(device).parameters.items()}
    groups = [{"params": [leaf], "lr": RATES.get(name, RATES.get(name.split(".")[0]))}
              for name, leaf in leaves.items()]
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    steps_taken, losses = kind(groups, **options), []
    for step in range(steps):
        for name, group in zip(leaves, steps_taken.param_groups, strict=True):
            group["lr"] = rates(step).get(name, rates(step).get(name.split(".")[0]))
        pairs = [cut(images, step % BATCHES * N + n) for n in range(N)]
        x, t = (torch.tensor(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
        loss = torch.mean((oracles.torch_network(leaves, x) - t) ** 2)
        steps_taken.zero_grad()
        loss.backward()
        steps_taken.step()
        losses.append(loss.item())
    return losses, {k: v.detach().numpy() for k, v in leaves.items()}


def difference(device, made, want):
    return max(np.abs(device.to_numpy(made.parameters[k]) - v).max() for k, v in want.items())


@pytest.mark.parametrize(("optimizer", "options", "torch_options"), [
    ("sgd", {"momentum": 0.0}, {"momentum": 0.0}),
    ("adam", {"betas": (0.8, 0.95), "eps": 1e-6}, {"betas": (0.8, 0.95), "eps": 1e-6}),
])
def test_training_is_the_plain_loop(device, images, optimizer, options, torch_options):
    """Six steps: the first launch by launch, the second recorded, the rest replayed."""
    made = trainer(device, images, optimizer=optimizer, **options)
    for _ in range(6):
        made.step()
    losses, want = plain_loop(device, images, 6, optimizer, **torch_options)
    assert made.steps == 6
    assert made.read_loss() == pytest.approx(np.mean(losses), rel=1e-12)
    assert difference(device, made, want) < 1e-12


# ---- the optimizers that work on a whole kernel, or on a whole layer, at a time ----------------

STEPS, BATCH = 4, 3
NETS = {  # architecture, filters, channels, patch size
    "like 9-1-5": ("5-1-3", (8, 4), 1, 9),
    "like 9-5-5, colour": ("5-3-3", (9, 6), 3, 11),  # 81 inputs of an inner filter: two blocks
    # two inner layers, more filters than a tile has, more taps of a kernel than a block has threads
    "large": ("13-1-1-1", (2, 37, 5), 1, 15),
}


def task(arch, filters, channels, size):
    """A network in float64, patches with their labels for every step, and the learning rates."""
    net = SRCNN(arch, filters, channels, backend="numpy", dtype="float64", init="he", seed=3)
    rng = np.random.default_rng(4)
    x = rng.random((STEPS, BATCH, channels, size, size))
    t = rng.random((STEPS, BATCH, channels, size - net.shrinkage, size - net.shrinkage))
    layers = [name.split(".")[0] for name in net.parameters if name.endswith("weight")]
    return net, x, t, {layer: 0.01 * (k + 1) for k, layer in enumerate(layers)}


def on_the_device(device, net, x, t, rates, optimizer, **options):
    """Train; every patch is an image of its own."""
    size = x.shape[-1]
    params = {name: device.asarray(value, "float64") for name, value in net.parameters.items()}
    count = STEPS * BATCH
    made = device.DeviceTrainer(
        params, list(x.reshape(count, *x.shape[2:])), list(t.reshape(count, *t.shape[2:])),
        np.array([(patch, 0, 0) for patch in range(count)]), batch_size=BATCH, patch_size=size,
        lr=rates, optimizer=optimizer, **options)
    made.load_order(np.arange(count))
    for _ in range(STEPS):
        made.step()
    return made


def by_torch(net, x, t, rates, optimizer, betas=(0.9, 0.999), eps=1e-8, mu=0.95):
    """The same with autograd, SciPy's transform, and the iteration on the whole matrix."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    from scipy.fft import dctn, idctn

    leaves = {k: torch.tensor(v.copy(), requires_grad=True) for k, v in net.parameters.items()}
    weights = [name for name in leaves if name.endswith("weight")]
    inner = weights[1:-1] if optimizer == "muon" else []
    m, v = ({k: np.zeros(leaf.shape) for k, leaf in leaves.items()} for _ in range(2))
    for step in range(STEPS):
        y = oracles.torch_network(leaves, torch.tensor(x[step]))
        grads = torch.autograd.grad(torch.mean((y - torch.tensor(t[step])) ** 2),
                                    list(leaves.values()))
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            g, rate = grad.numpy(), rates[name.split(".")[0]]
            if name in inner:
                m[name] = mu * m[name] + (1 - mu) * g
                X = torch.tensor(mu * m[name] + (1 - mu) * g).reshape(len(g), -1)
                X = X / torch.linalg.norm(X)
                for _ in range(5):
                    A = X @ X.T
                    X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
                change = -0.4 * rate * max(X.shape) ** 0.5 * X.reshape(g.shape).numpy()
            else:
                kernel = g.ndim == 4
                g = dctn(g, axes=(2, 3), norm="ortho") if kernel else g
                m[name] = betas[0] * m[name] + (1 - betas[0]) * g
                v[name] = betas[1] * v[name] + (1 - betas[1]) * g * g
                change = (-rate * m[name] / (1 - betas[0] ** (step + 1))
                          / (np.sqrt(v[name] / (1 - betas[1] ** (step + 1))) + eps))
                change = idctn(change, axes=(2, 3), norm="ortho") if kernel else change
            leaf.data += torch.tensor(change)
    state = {f"{name}.m": value for name, value in m.items()}
    state |= {f"{name}.v": value for name, value in v.items() if name not in inner}
    return {name: leaf.detach().numpy() for name, leaf in leaves.items()}, state


def on_the_host(net, x, t, rates, make):
    """The same with the optimizers of minisrcnn.engine.optim, on NumPy."""
    optimizer = make(net.parameters, rates, backend="numpy")
    for step in range(STEPS):
        optimizer.step(net.loss_and_gradients(x[step], t[step])[1])
    return net.parameters, optimizer.state


@pytest.mark.parametrize(("optimizer", "make", "case"), [
    *(("muon", Muon, case) for case in NETS),
    ("dct-adam", DCTAdam, "large"),
])
def test_the_devices_optimizer_is_that_of_the_host_and_of_the_papers(device, optimizer, make,
                                                                     case):
    net, *data = task(*NETS[case])
    made = on_the_device(device, net, *data, optimizer)
    for params, state in (by_torch(net, *data, optimizer), on_the_host(net, *data, make)):
        assert set(made.state) == set(state)
        for name, want in {**params, **state}.items():
            found = device.to_numpy({**made.parameters, **made.state}[name])
            np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_settings_of_the_optimizers_arrive(device):
    net, *data = task(*NETS["like 9-1-5"])
    made = on_the_device(device, net, *data, "muon", momentum=0.5, betas=(0.7, 0.9), eps=1e-3)
    params, _ = by_torch(net, *data, "muon", betas=(0.7, 0.9), eps=1e-3, mu=0.5)
    assert difference(device, made, params) < 1e-9


def test_kernels_that_are_not_square_have_no_cosine_transform(device):
    params = {"conv1.weight": np.ones((2, 1, 3, 1)), "conv1.bias": np.zeros(2),
              "conv2.weight": np.ones((1, 2, 1, 3)), "conv2.bias": np.zeros(1)}
    image = np.ones((1, 5, 5))
    with pytest.raises(ValueError, match=r"conv1\.weight has kernels of 3x1, want square ones"):
        device.DeviceTrainer({k: device.asarray(a, "float64") for k, a in params.items()},
                             [image], [image], np.array([(0, 0, 0)]), batch_size=1, patch_size=5,
                             lr=0.1, optimizer="dct-adam")


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_float32_follows_float64(device, images, optimizer):
    options = {"optimizer": optimizer, "momentum": 0.9}
    single, double = (trainer(device, images, dtype, **options)
                      for dtype in ("float32", "float64"))
    for made in (single, double):
        for _ in range(5):
            made.step()
    want = {k: device.to_numpy(v) for k, v in double.parameters.items()}
    assert difference(device, single, want) < 1e-6
    assert single.read_loss() == pytest.approx(double.read_loss(), rel=1e-6)


def test_a_recorded_step_takes_a_new_learning_rate(device, images):
    """SGD with momentum in the paper's form: the velocity holds the old learning rate."""
    made = trainer(device, images, momentum=0.9)
    net = network(device)
    velocity = {k: np.zeros(v.shape) for k, v in net.parameters.items()}
    params = {k: device.to_numpy(v).copy() for k, v in net.parameters.items()}
    for step in range(5):
        rate = 0.02 if step < 3 else 0.005
        if step in (0, 3):
            made.set_learning_rate(rate)
        made.step()
        x, t = (np.stack(arrays) for arrays in zip(
            *(cut(images, step % BATCHES * N + n) for n in range(N)), strict=True))
        _, grads = device.chain_loss_and_gradients(
            {k: device.asarray(v, "float64") for k, v in params.items()},
            device.asarray(x, "float64"), device.asarray(t, "float64"))
        for name in params:
            velocity[name] = 0.9 * velocity[name] - rate * device.to_numpy(grads[name])
            params[name] += velocity[name]
    assert difference(device, made, params) < 1e-13


def test_the_loss_is_read_over_the_steps_since_the_last_reading(device, images):
    made = trainer(device, images, lr=0.0)  # nothing changes: four losses, again and again
    losses, _ = plain_loop(device, images, 4, "sgd",
                           lambda step: dict.fromkeys(("conv1", "conv2", "conv3"), 0.0))
    for steps, want in ((1, losses[:1]), (3, losses[1:]), (4, losses)):
        for _ in range(steps):
            made.step()
        assert made.read_loss() == pytest.approx(np.mean(want), rel=1e-13)
    with pytest.raises(ValueError, match="no step was taken since the last reading"):
        made.read_loss()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_a_resumed_training_goes_on_bit_for_bit(device, images, optimizer):
    options = {"optimizer": optimizer, "momentum": 0.9 if optimizer == "sgd" else None}
    whole = trainer(device, images, "float32", **options)
    first = trainer(device, images, "float32", **options)
    for _ in range(4):
        whole.step()
        first.step()
    state = {k: device.to_numpy(v).copy() for k, v in first.state.items()}
    second = device.DeviceTrainer(first.parameters, *images, TABLE, batch_size=N, patch_size=SIZE,
                                  lr=RATES, batches=BATCHES, **options)
    second.load_order(ORDER, CODES)
    second.load_state(state, first.steps)
    for _ in range(4):
        whole.step()
        second.step()
    assert second.steps == whole.steps == 8
    for name, value in whole.parameters.items():
        np.testing.assert_array_equal(device.to_numpy(second.parameters[name]),
                                      device.to_numpy(value))


def test_a_new_order_starts_at_its_beginning(device, images):
    """Three steps, a new order, one step: the same as that step from the same parameters."""
    made = trainer(device, images)
    for _ in range(3):
        made.step()
    made.read_loss()
    made.set_learning_rate(0.0)
    order = np.array([2, 3, 0, 0, 0, 0, 0, 0])
    made.load_order(order)
    made.step()
    x, t = [], []
    for row in order[:N]:
        image, top, left = TABLE[row]
        assert image == 1  # labels without margin
        x.append(images[0][1][:, top:top + SIZE, left:left + SIZE])
        t.append(images[1][1][:, top:top + LABEL, left:left + LABEL])
    loss, _ = device.chain_loss_and_gradients(
        made.parameters, device.asarray(np.stack(x), "float64"),
        device.asarray(np.stack(t), "float64"))
    assert made.read_loss() == pytest.approx(float(loss), rel=1e-13)


def test_training_learns_and_leaves_the_network_alone(device):
    """A sharpening task: the loss of 40 steps falls to a third of that of the first four."""
    rng = np.random.default_rng(3)
    sharp = np.cumsum(rng.normal(size=(1, 40, 40)), axis=2)
    sharp = (sharp - sharp.min()) / (sharp.max() - sharp.min())
    blurred = (sharp + np.roll(sharp, 1, 1) + np.roll(sharp, 1, 2)) / 3
    net = network(device, "float32")
    before = {k: device.to_numpy(v).copy() for k, v in net.parameters.items()}
    table = np.array([(0, y, x) for y in range(0, 30, 7) for x in range(0, 30, 7)])
    made = device.DeviceTrainer(net.parameters, [blurred], [sharp], table, batch_size=4,
                                patch_size=SIZE, lr=0.05, momentum=0.9)
    made.load_order(rng.permutation(len(table))[:made.batches * 4],
                    rng.integers(0, 8, made.batches * 4))
    losses = []
    for _ in range(10):
        for _ in range(4):
            made.step()
        losses.append(made.read_loss())
    assert losses[-1] < losses[0] / 3
    for name, value in net.parameters.items():
        np.testing.assert_array_equal(device.to_numpy(value), before[name])


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    ({"batch_size": 0}, "batch_size is 0, want an integer"),
    ({"batch_size": 7, "batches": None}, "batch_size is 7, want at most 6"),
    ({"patch_size": 6}, "patch_size is 6, want at least 7"),
    ({"lr": -1.0}, "lr of conv1.weight is -1.0, want a finite"),
    ({"lr": {"conv1": 0.1}}, "want one for conv2"),
    ({"lr": {**RATES, "conv9": 1.0}}, "lr has the key 'conv9', want layers or parameters of"),
    ({"optimizer": "lbfgs"}, "optimizer is 'lbfgs', want one of sgd, adam, dct-adam, muon"),
    ({"momentum": 1.0}, "momentum is 1.0, want"),
    ({"ranks": 2}, "gather is None, want"),
])
def test_wrong_settings_are_named(device, images, change, message):
    with pytest.raises(ValueError, match=message):
        trainer(device, images, **change)


@pytest.mark.parametrize(("table", "message"), [
    ([(0, 10, 0)], r"table\[0\] is \[0, 10, 0\], want a patch of 11x11 within its image of 20x18"),
    ([(0, 0, 0), (1, 0, -1)], r"table\[1\] is \[1, 0, -1\]"),
    ([(2, 0, 0)], "table has images from 2 to 2, want 0 to 1"),
    ([(0.0, 0.0, 0.0)], "want .P, 3. and integers"),
])
def test_patches_that_leave_their_image_are_refused(device, images, table, message):
    with pytest.raises(ValueError, match=message):
        device.DeviceTrainer(network(device).parameters, *images, np.array(table), batch_size=1,
                             patch_size=SIZE, lr=0.1)


def test_labels_of_another_size_are_refused(device, images):
    inputs, labels = images
    label = labels[0]
    for wrong in (label[:, :, :-2], label[:, :12, :10], label[:, :-1, :-1], label[0]):
        with pytest.raises(ValueError, match=r"labels\[0\] has shape .* or smaller by up to 6"):
            device.DeviceTrainer(network(device).parameters, inputs, [wrong, labels[1]], TABLE,
                                 batch_size=1, patch_size=SIZE, lr=0.1)


def test_wrong_orders_are_refused(device, images):
    made = trainer(device, images)
    for order, codes, message in (
        (ORDER[:-1], None, r"order has shape \(7,\)"),
        (ORDER + 1, None, "order has numbers from 1 to 6, want 0 to 5"),
        (ORDER, CODES + 1, "codes has numbers from 1 to 8, want 0 to 7"),
        (ORDER * 1.0, None, "and dtype float64, want"),
    ):
        with pytest.raises(ValueError, match=message):
            made.load_order(order, codes)


def test_a_step_without_an_order_is_refused(device, images):
    made = device.DeviceTrainer(network(device).parameters, *images, TABLE, batch_size=N,
                                patch_size=SIZE, lr=0.1)
    with pytest.raises(ValueError, match="no order is loaded"):
        made.step()


# --- streams ------------------------------------------------------------------------------------


@pytest.fixture
def emulated():
    reason = unavailable_reason("cupy-emulated")
    if reason is not None:
        pytest.skip(f"backend cupy-emulated: {reason}")
    return get_backend("cupy-emulated")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_a_recording_that_is_broken_off_leaves_no_stream_in_capture(emulated, images, kind,
                                                                    monkeypatch):
    trained, other = (trainer(emulated, images) for _ in range(2))
    trained.step()

    def broken(*args):
        raise kind("in the middle of the recording")

    with monkeypatch.context() as patch:
        patch.setattr(type(trained.backend), "_mse", broken)
        with pytest.raises(kind):
            trained.step()
    emulated.relu_forward(emulated.asarray(np.ones(4), "float32"))  # on the default stream
    for _ in range(3):
        other.step()
    for _ in range(2):
        trained.step()  # the recording is done again
    np.testing.assert_array_equal(*(emulated.to_numpy(made.parameters["conv1.weight"])
                                    for made in (trained, other)))


def test_other_work_on_the_default_stream_during_a_recording(emulated, images, monkeypatch):
    """What another thread does there meanwhile, done here by the loss of the recorded step."""
    made = trainer(emulated, images)
    made.step()
    loss = type(made.backend)._mse

    def meanwhile(self, *args):
        with self.xp.cuda.Stream.null:
            self.xp.zeros(3).fill(1)
        return loss(self, *args)

    monkeypatch.setattr(type(made.backend), "_mse", meanwhile)
    made.step()
    assert made.steps == 2


@pytest.mark.parametrize("per_thread", [False, True])
def test_no_two_streams_race(emulated, images, per_thread):
    """Two trainers at once, their tables shared; parameters, state and rates changed between."""
    xp = emulated._backend.xp
    emulated._backend._tables.clear()
    with ordering.watch(per_thread) as races:
        caller = xp.cuda.Stream(non_blocking=True) if per_thread else xp.cuda.Stream.null
        with caller:
            a, b = (trainer(emulated, images, optimizer="muon") for _ in range(2))
            for step in range(4):
                a.step()
                b.step()
                a.set_learning_rate(1e-3 * step)
            a.parameters["conv1.bias"].fill(0.25)
            a.step()
            b.load_state(a.state, a.steps)
            a.step()  # overwrites what b has copied
            b.step()
            a.read_loss()
            emulated.to_numpy(b.parameters["conv1.weight"])
    assert not [str(race) for race in races]


def test_images_may_be_overwritten_at_once(emulated, monkeypatch):
    """CUDA may read the host's memory after ``set`` has returned: here, before the next step."""
    rng = np.random.default_rng(0)
    x, t = rng.random((N, 1, SIZE, SIZE)), rng.random((N, 1, LABEL, LABEL))
    made, want = (emulated.DeviceTrainer(
        network(emulated).parameters, list(np.zeros_like(x)), list(np.zeros_like(t)),
        np.array([(0, 0, 0), (1, 0, 0)]), batch_size=N, patch_size=SIZE, lr=RATES)
        for _ in range(2))
    queued = []
    with monkeypatch.context() as patch:
        patch.setattr(emulated.xp.ndarray, "set",
                      lambda a, host, stream=None: queued.append((a, host)))
        made.load_images(x, t)
    want.load_images(x.copy(), t.copy())
    x[:], t[:] = 0, 0  # the next batch is made in the same memory
    for a, host in queued:
        a.set(host)
    for each in (made, want):
        each.load_order(np.arange(N))
        each.step()
    assert made.read_loss() == want.read_loss() > 0


def test_a_missing_wait_is_found(emulated):
    xp = emulated._backend.xp
    for name in ("fill", "sum"):
        with ordering.watch() as races:
            stream = xp.cuda.Stream(non_blocking=True)
            a = xp.zeros(4)
            with stream:
                getattr(a, name)(*[1] * (name == "fill"))
        assert [race.second.what for race in races] == [name]
    with ordering.watch() as races:
        stream = xp.cuda.Stream(non_blocking=True)
        a = xp.zeros(4)
        stream.wait_event(xp.cuda.Stream.null.record())
        with stream:
            a.fill(1)
        stream.synchronize()
        a.get()
    assert not races

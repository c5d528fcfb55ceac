"""What one device must do, in the order in which it can go wrong. A small network, which every device compiles in seconds,
trains 20 steps without sinks; every later check starts from the same state and must get the same losses."""

import time

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from src import runtime
from src.data import demo_images, pipeline, preprocess
from src.data.records import open_records
from src.deploy.export import BOUNDS
from src.evaluation import evaluation
from src.inceptionv4 import InceptionV4, set_precision
from src.options import load_settings
from src.training import resume
from src.training.step import on_host
from src.weights import checkpoint
from tests.npu import reference, small_training
from tests.npu.conftest import BRANCH
from tests.npu.small_training import SMALL, Recorder, settings_of, train

PLACE = 'docs/ascend.md, "When it goes wrong"'
OVERFLOW = (
    f'--drop_overflow_update select compiles the step {BRANCH}; '
    'TrainStep.saturates (src/training/step.py) says how the chip reports overflow; unset MS_ASCEND_CHECK_OVERFLOW_MODE; '
    '--amp_level O0 needs no loss scale'
)
STATE = (
    'the state on the device and what the host reads of it differ (src/training/step.py, checkpoints.py); except on the '
    'first Ascend 910, --jit_level O0 goes back to the host after every step'
)
pytestmark = [pytest.mark.compiles, pytest.mark.remedy(STATE)]  # of the checks that name no other
STEPS, SINK = 20, 10
# Bounds for two graphs of the same training on one device: relative difference of the losses, and of the changes of state.
LOSS_BOUND = {'float32': 1e-4, 'float16': 1e-2}
CHANGE_BOUND = {'float32': 1e-3, 'float16': 1e-1}
# Loss scales so large that the gradients, or the squares of their norm, overflow at three halvings, and soon no more.
HUGE_SCALE = {'float32': 2.0**62, 'float16': 2.0**26}


def copies(cell):
    """{name: value} of the state of `cell`, which stay as they are when it is trained."""
    return {name: value.copy() for name, value in checkpoint.values(cell).items()}


class Device:
    """The device and what the checks leave for those after them."""

    def __init__(self, option):
        names = ('device_target', 'device_id')
        self.run = runtime.start(load_settings([f'--{name}={getattr(option, name)}' for name in names]))
        self.option, self.size = option, 'whole' if self.run.sink else 'small'
        self.precision = 'float32' if self.run.amp_level == 'O0' else 'float16'

    def make_step(self, state=None):
        """The training step of the small network, with `state`."""
        return small_training.make_step(self.run, SMALL, self.option.drop_overflow_update, state)

    def data(self, start, stop):
        """The batches of some steps."""
        return small_training.training_data(self.records, SMALL, range(start, stop), self.run)

    def difference(self, step, steps, sinks, recorder):
        """Train `steps` (start, stop) in (number, length) of sinks. Returns the largest relative difference from the losses
        without sinks."""
        outputs = train(self.run, step, self.data(*steps), sinks, recorder).outputs
        worst = max(abs(one.loss / self.losses[number] - 1) for number, one in outputs.items())
        assert worst <= LOSS_BOUND[self.precision], f'losses at steps {[*outputs]}'
        return worst


@pytest.fixture(scope='module')
def device(option):
    """The `Device`; MindSpore takes it here."""
    return Device(option)


@pytest.fixture
def sinks(device):
    """Skips where there are none."""
    if not device.run.sink:
        pytest.skip(f'a {device.run.device_target} has no sinks')


@pytest.mark.remedy(f'python -m src.environment says what is missing; {PLACE}')
def test_device(device, figures):
    name = ms.hal.get_device_name(device.run.device_id) if device.run.sink else ''
    text = f'{runtime.describe(device.run, device.run.device_target)} {name}'
    figures(text=text, device=name, chip=runtime.chip(), mindspore=ms.__version__)


@pytest.mark.remedy('MindSpore refuses a layer on this chip: src/inceptionv4.py and tests/test_ascend_contract.py')
def test_construction(figures):
    """MindSpore accepts every layer of the whole network for this chip."""
    with no_init_parameters():
        network = InceptionV4(aux_logits=True)
    millions = sum(parameter.size for parameter in network.trainable_params()) / 1e6
    figures(text=f'whole network and auxiliary classifier, {millions:.1f} million weights')


@pytest.mark.remedy(
    'MindSpore and CANN must belong together (docs/ascend.md, "Versions"); src/runtime.py sets the precision'
)
def test_forward(device, figures):
    """The logits of seeded weights are those that tests/npu/reference.py stored; the network becomes a checkpoint."""
    network = reference.network(device.size)
    info = {'step': 0, 'epoch': 0, 'config': settings_of(reference.NETWORKS[device.size])}
    checkpoint.write(device.option.output / 'seeded.ckpt', checkpoint.values(network), info)
    start = time.perf_counter()
    found = reference.logits(set_precision(network, device.run.amp_level), device.size)
    seconds = time.perf_counter() - start
    with np.load(reference.STORED) as stored:
        expected = stored[device.size]
    bound = BOUNDS['float32' if device.precision == 'float32' else 'float16 or HF32']
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert difference <= bound, 'difference from the float32 logits of a CPU, in parts of the largest'
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()
    text = f'{device.size} network, {difference:.1e} of the largest logit (bound {bound:g}), same top-1'
    figures(text=text, difference=difference, bound=bound, first_call_seconds=seconds)


@pytest.mark.remedy('src/data/preprocess.py, Augment')
def test_augmentation(device, figures):
    """The colour augmentation on the device computes what NumPy does."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (4, 3, 299, 299), np.uint8)
    draws = np.stack([preprocess.draw_augmentation(rng)[1] for _ in image])
    found = preprocess.Augment(getattr(ms, device.precision))(Tensor(image), Tensor(draws)).asnumpy().astype(np.float32)
    columns = (draws * preprocess.DRAWN).T.reshape(2, -1, 1, 1, 1)
    expected = preprocess.colour(image.astype(np.float32), *columns, np.maximum, np.minimum)
    difference = float(np.abs(found - expected).max())
    assert difference <= 1 / 255
    figures(text=f'{difference:.1e} from NumPy (bound 1/255)', difference=difference)


@pytest.mark.remedy('a disk with some 500 MB free: --output DIR')
def test_records(device, figures):
    """Draw a data set and read of it."""
    data = demo_images.make(device.option.output / 'data', train_per_class=40, validation_per_class=3)
    device.records, device.validation = (open_records(data, split) for split in ('train', 'validation'))
    lengths = [len(device.records.read(record)) for record in range(50)]
    figures(text=f'{len(device.records)} images drawn, {sum(lengths) / 50e3:.0f} KB each')


@pytest.mark.remedy(OVERFLOW)
def test_overflow(device, figures):
    """Three steps whose gradients overflow change nothing but counters; then the loss scale recovers."""
    device.step = device.make_step({'scale_sense': np.float32(HUGE_SCALE[device.precision])})
    before, runs = copies(device.step), []
    for batch in device.data(0, 3).create_tuple_iterator(num_epochs=1):
        runs.append(int(device.step.set_train()(*batch)[3].asnumpy()))
    assert runs == [1, 2, 3], 'steps in a row without an update'
    after = copies(device.step)
    moved = {name for name, value in before.items() if (value != after[name]).any()}
    counters = 'global_step overflows overflow_run scale_sense last_overflow_iterator_step current_iterator_step'.split()
    assert [n for n in moved - {*counters} if not n.endswith(evaluation.STATISTICS)] == []  # those of the forward pass move
    assert int(after['global_step'].item()) == 3 and float(after['scale_sense']) * 8 == HUGE_SCALE[device.precision]
    runs = (on_host(device.step(*batch)) for batch in device.data(3, 43).create_tuple_iterator(num_epochs=1))
    outputs = next((one for one in runs if not one.overflow_run), None)
    assert outputs, 'no update after the scale was halved 40 times'
    device.state = copies(device.step)
    weight = 'conv2d_1a_3x3.conv.weight'
    assert np.isfinite(device.state[weight]).all() and (device.state[weight] != before[weight]).any()
    how = 'a flag of the device' if device.step.saturates else 'gradients that are not finite'
    figures(text=f'seen by {how}; 3 steps skipped, recovered after {outputs.overflows:.0f}, scale {outputs.loss_scale:g}')


@pytest.mark.remedy(PLACE)
def test_steps_without_sinks(device, figures):
    """Finite losses in a training that goes back to the host after every step. Later checks compare with them."""
    batches = device.data(0, STEPS if device.run.sink else 11).create_tuple_iterator(num_epochs=1)
    losses = [float(device.step(*batch)[0].asnumpy()) for batch in batches]
    device.losses, device.after = dict(enumerate(losses, 1)), copies(device.step)
    assert np.isfinite(losses).all()
    figures(text=f'{len(losses)} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}', losses=losses)


def change(before, after):
    """Norm of the change of all float32 parameters but scalars (weights, slots and averages) between two `copies`."""
    names = [name for name, value in before.items() if value.ndim and value.dtype == np.float32]
    return sum(float(np.square(after[name] - before[name], dtype=np.float64).sum()) for name in names) ** 0.5


@pytest.mark.remedy(f'{OVERFLOW}; {STATE}')
def test_sinks(device, sinks, figures):
    """The same losses and the same changes of all state in sinks."""
    step = device.make_step(device.state)
    worst = device.difference(step, (0, STEPS), (STEPS // SINK, SINK), Recorder())
    changes = change(device.after, copies(step)) / change(device.state, device.after)
    assert changes <= CHANGE_BOUND[device.precision], 'difference of the changes of weights and slots, in parts of them'
    figures(text=f'losses within {worst:.1e}, changes of all state within {changes:.1e}')


@pytest.mark.remedy(OVERFLOW)
def test_overflow_inside_a_sink(device, sinks, figures):
    """Steps that overflow are skipped inside a sink, too, where the graph branches on the device."""
    step = device.make_step({**device.state, 'scale_sense': np.float32(HUGE_SCALE[device.precision])})
    assert train(device.run, step, device.data(0, 3), (1, 3), Recorder()).outputs[3].overflow_run == 3
    after, weights = checkpoint.values(step), [parameter.name for parameter in step.optimizer.parameters]
    assert [name for name in weights if (after[name] != device.state[name]).any()] == []
    figures(text='3 of 3 steps skipped inside one sink')


def test_evaluation_between_sinks(device, figures):
    """An evaluation between sinks does not change the training."""
    device.step = device.make_step(device.state)
    step, results = evaluation.make_step(SMALL, device.run.amp_level), []
    data = pipeline.evaluation_dataset(device.validation, 1, settings_of(SMALL), device.run)

    def evaluate():
        evaluation.take_weights(step.network, device.step)
        results.append(evaluation.evaluate(step, data, len(device.validation), device.run))

    worst = device.difference(device.step, (0, 8), (2, 4), Recorder(0, 4, evaluate))
    assert len(results) == 1
    figures(text=f'{len(results[0].label)} images after step 4, losses to step 8 within {worst:.1e}', loss=worst)


@pytest.mark.remedy(f'{STATE}; unset MS_ENABLE_CKPT_D2H_ASYNC')
def test_state_in_a_checkpoint(device, figures):
    """A checkpoint after 2 sinks holds all state as it is then, not as it was copied to the device."""
    device.path = checkpoint.save(device.option.output, device.step, step=8, epoch=0, config=settings_of(SMALL))
    saved, _ = checkpoint.load(device.path)
    weights = [parameter.name for parameter in device.step.optimizer.parameters]
    names = [*weights, *(checkpoint.AVERAGE + name for name in weights)]
    names += [n for n in saved if n.startswith(resume.OPTIMIZER_STATE) or n.endswith(evaluation.STATISTICS)]
    assert [name for name in names if np.array_equal(saved[name], device.state[name])] == []
    assert saved['global_step'].item() == device.state['global_step'].item() + 8
    figures(text=f'{len(names)} weights, slots, averages and statistics changed')


@pytest.mark.remedy(f'{STATE}; --iterations_per_loop may divide the steps')
def test_shorter_last_sink(device, figures):
    """The same step with a second data set and sinks of another length, for which it is compiled again."""
    worst = device.difference(device.step, (8, 11), (1, 3), Recorder(8))
    assert int(device.step.optimizer.global_step.asnumpy().item() - device.state['global_step'].item()) == 11
    figures(text=f'8 steps and 3, losses within {worst:.1e}', loss=worst)


@pytest.mark.remedy(f'{STATE}; src/training/resume.py')
def test_resume(device, figures):
    """A step made anew continues from the checkpoint with the same losses."""
    parameters, _ = checkpoint.load(device.path)
    device.step = device.make_step()
    resume.load(device.step, resume.Saved(device.path, parameters, {}), int(parameters['global_step'].item()))
    worst = device.difference(device.step, (8, 11), (1, 3), Recorder(8))
    figures(text=f'steps 9 to 11 from the checkpoint, losses within {worst:.1e}', loss=worst)

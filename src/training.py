"""Loss, mixed precision and the training step."""
import mindspore as ms
from mindspore import Tensor, amp, nn, ops

from src.optimizer import decayed_parameters
from src.preprocess import Augment


def set_precision(network, amp_level):
    """`network` at mixed precision `O0`, `O2` or `O3`, its logits in float32; parameters stay float32 at all levels.

    O3 computes everything in float16, O2 all but batch norm (`mindspore.amp.auto_mixed_precision`).
    """
    return network if amp_level == 'O0' else amp.auto_mixed_precision(network, amp_level)


def cross_entropy(logits, label, smoothing=0.0):
    """Softmax cross entropy in float32: logits (N, C), labels int32 (N,) -> (N,).

    With label smoothing (Szegedy et al. 2016, section 7) the target is 1 - smoothing on the label plus smoothing / C
    on every class, as in TensorFlow.
    """
    log_p = ops.log_softmax(logits.astype(ms.float32), -1)
    hit = ops.gather_elements(log_p, 1, label.reshape(-1, 1)).reshape(-1)
    return -(1 - smoothing) * hit - smoothing * log_p.mean(-1)


class NetworkWithLoss(nn.Cell):
    """A batch of the training pipeline -> mean loss, the auxiliary classifier's added with `aux_loss_weight` (None for
    a network without one).

    Inputs: image uint8 (N, H, W, 3), draws float32 (N, 3), dropout mask uint8 (N, 1536), label int32 (N,).
    """

    def __init__(self, network, label_smoothing=0.0, aux_loss_weight=None, dtype=ms.float32):
        super().__init__(auto_prefix=False)  # parameters keep the network's own names
        self.augment = Augment(dtype)
        self.network = network
        self.smoothing = label_smoothing
        self.aux_loss_weight = aux_loss_weight

    def construct(self, image, draws, dropout_mask, label):
        logits = self.network(self.augment(image, draws), dropout_mask.astype(ms.float32))
        if self.aux_loss_weight is not None:
            loss = cross_entropy(logits[0], label, self.smoothing)
            return (loss + self.aux_loss_weight * cross_entropy(logits[1], label, self.smoothing)).mean()
        return cross_entropy(logits, label, self.smoothing).mean()


def multiplied(factor, gradient):
    return gradient * factor


class TrainStep(nn.TrainOneStepCell):
    """One step of `optimizer` on `network_with_loss`; gives (loss, total_loss), float32 scalars, before the step.

    The loss is multiplied by `loss_scale` before the gradients are taken, and they are divided by it before the
    optimizer sees them. total_loss adds weight_decay * sum(w^2) / 2 over `decayed_parameters`, the term whose gradient
    is the optimizer's weight decay.
    """

    def __init__(self, network_with_loss, optimizer, loss_scale=1024.0, weight_decay=0.0):
        super().__init__(network_with_loss, optimizer, sens=loss_scale)
        self.decayed = decayed_parameters(network_with_loss)
        self.weight_decay = weight_decay
        self.reciprocal = Tensor(1 / loss_scale, ms.float32)
        self.map = ops.HyperMap()

    def construct(self, *batch):
        loss = self.network(*batch)
        squares = 0.0
        for weight in self.decayed:
            squares = squares + ops.square(weight).sum()  # `+=` would be an operation in place
        gradients = self.grad(self.network, self.weights)(*batch, ops.fill(loss.dtype, loss.shape, self.sens))
        gradients = self.map(ops.partial(multiplied, self.reciprocal), self.grad_reducer(gradients))
        total_loss = loss + self.weight_decay / 2 * squares
        return ops.depend(loss, self.optimizer(gradients)), total_loss


def sink_size(steps, iterations_per_loop):
    """Largest number of steps up to `iterations_per_loop` that divides `steps`, so that no sink overshoots the end."""
    return next(size for size in range(min(iterations_per_loop, steps), 0, -1) if steps % size == 0)

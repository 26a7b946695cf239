"""cross_entropy(inplace_grad=True): the same loss and gradients; an error where the overwritten logits are missed."""

from __future__ import annotations

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F

rng = np.random.default_rng(5)
X, W = rng.standard_normal((6, 4)), rng.standard_normal((5, 4))
CLASSES = np.array([0, 4, -100, 2, 1, 3])


def leaves():
    return ad.tensor(X, requires_grad=True), ad.tensor(W, requires_grad=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_same_loss_and_gradients(reduction, smoothing):
    results = []
    for inplace_grad in (False, True):
        x, w = leaves()
        logits = F.linear(x, w)
        loss = F.cross_entropy(
            logits, ad.tensor(CLASSES), reduction=reduction, label_smoothing=smoothing, inplace_grad=inplace_grad
        )
        (loss * 1.5).sum().backward()
        results.append([loss.detach().numpy(), x.grad.numpy(), w.grad.numpy()])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_writes_over_the_logits_and_counts_the_change():
    x, w = leaves()
    logits = F.linear(x, w)
    array, version = logits.data, logits._version
    wanted = ad.autograd.grad(F.cross_entropy(logits, ad.tensor(CLASSES)), logits)[0].numpy()
    F.cross_entropy(logits, ad.tensor(CLASSES), inplace_grad=True)
    np.testing.assert_array_equal(array, wanted)
    assert logits._version == version + 1


def test_a_view_of_the_logits_of_a_sequence():
    """(B, T, C) logits as (B · T, C): the usual case of a language model."""
    results = []
    for inplace_grad in (False, True):
        x, w = leaves()
        logits = F.linear(x.reshape(2, 3, 4), w)
        loss = F.cross_entropy(logits.view(-1, 5), ad.tensor(CLASSES), inplace_grad=inplace_grad)
        results.append([array.numpy() for array in ad.autograd.grad(loss, (x, w))])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)
    with pytest.raises(RuntimeError, match="inplace_grad=True has written the gradient over the logits"):
        logits.sum().backward()


def test_nothing_happens_without_a_gradient():
    target = ad.tensor(CLASSES % 4)
    logits = ad.tensor(X)
    F.cross_entropy(logits, target, inplace_grad=True)
    leaf = ad.tensor(X, requires_grad=True)
    with ad.no_grad():
        F.cross_entropy(leaf, target, inplace_grad=True)
    for tensor in (logits, leaf):
        np.testing.assert_array_equal(tensor.data, X)
        assert tensor._version == 0


def test_the_module_passes_it_on():
    x, w = leaves()
    logits = F.linear(x, w)
    ad.nn.CrossEntropyLoss(inplace_grad=True)(logits, ad.tensor(CLASSES)).backward()
    assert logits._version == 1


def test_what_saved_the_logits_raises():
    x, _ = leaves()
    logits = x.exp()  # its derivative needs its result
    loss = F.cross_entropy(logits, ad.tensor(np.arange(6) % 4), inplace_grad=True)
    with pytest.raises(RuntimeError, match=r"backward of Exp: a tensor of shape .* has been changed in place"):
        loss.backward()


def test_a_later_use_raises():
    x, w = leaves()
    logits = F.linear(x, w)
    loss = F.cross_entropy(logits, ad.tensor(CLASSES), inplace_grad=True)
    with pytest.raises(RuntimeError, match="used again afterwards"):
        (loss + logits.square().mean()).backward()


def test_a_change_of_the_gradient_before_backward_raises():
    x, w = leaves()
    logits = F.linear(x, w)
    loss = F.cross_entropy(logits, ad.tensor(CLASSES), inplace_grad=True)
    with ad.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match=r"backward of SoftmaxCrossEntropy: .* changed in place"):
        loss.backward()


def test_second_derivative_raises():
    x, w = leaves()
    loss = F.cross_entropy(F.linear(x, w), ad.tensor(CLASSES), inplace_grad=True)
    (first,) = ad.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="there is no second derivative with inplace_grad=True"):
        first.square().sum().backward()


def test_a_retained_graph_gives_the_same_twice():
    x, w = leaves()
    loss = F.cross_entropy(F.linear(x, w), ad.tensor(CLASSES), inplace_grad=True) * 3
    first = ad.autograd.grad(loss, x, retain_graph=True)[0].numpy()
    np.testing.assert_array_equal(ad.autograd.grad(loss, x)[0].numpy(), first)


def test_inputs_that_cannot_be_overwritten():
    target = ad.tensor(CLASSES)
    leaf, w = leaves()
    inplace = {"inplace_grad": True}
    with pytest.raises(RuntimeError, match="a leaf that requires a gradient cannot be changed in place"):
        F.cross_entropy(leaf, ad.tensor(np.zeros(6, np.int64)), **inplace)
    with pytest.raises(RuntimeError, match="a view of a leaf"):
        F.cross_entropy(leaf.view(4, 6), ad.tensor(np.zeros(4, np.int64)), **inplace)
    columns = F.linear(leaf, w).t()
    with pytest.raises(ValueError, match=r"the logits must be contiguous, got shape \(5, 6\)"):
        F.cross_entropy(columns, target[:5].clamp(0), **inplace)
    expanded = F.linear(leaf, w)[:1].expand(6, 5)
    with pytest.raises(RuntimeError, match="expanded"):
        F.cross_entropy(expanded, target, **inplace)
    with pytest.raises(ValueError, match=r"inplace_grad=True needs logits of the shape \(N, C\), got \(1, 6, 5\)"):
        F.cross_entropy(F.linear(leaf, w).unsqueeze(0), ad.tensor(np.zeros((1, 5), np.int64)), **inplace)
    probabilities = ad.tensor(np.full((6, 5), 0.2), requires_grad=True)
    logits = F.linear(leaf, w)
    before = logits.detach().numpy().copy()
    with pytest.raises(ValueError, match="there is no gradient for target"):
        F.cross_entropy(logits, probabilities, **inplace)
    with pytest.raises(ValueError, match="must not share the memory of the logits"):
        F.cross_entropy(logits, logits.detach(), **inplace)
    with pytest.raises(ValueError, match="class index 9 in row 0 is out of range"):
        F.cross_entropy(logits, ad.tensor(np.full(6, 9)), **inplace)
    np.testing.assert_array_equal(logits.detach().numpy(), before)
    assert logits._version == 0

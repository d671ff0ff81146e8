"""The switch of cuDNN's attention is as it was after every call."""

from types import SimpleNamespace

import pytest
import torch
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

from kernels.attention import unplanned


@pytest.fixture(params=[True, False])
def switched(request):
    before = cudnn_sdp_enabled()
    enable_cudnn_sdp(request.param)
    yield request.param
    enable_cudnn_sdp(before)


def test_it_is_off_within_on_a_gpu_alone_and_put_back(switched):
    gpu, cpu = SimpleNamespace(is_cuda=True), torch.zeros(1)
    with unplanned(gpu):
        assert not cudnn_sdp_enabled()
    assert cudnn_sdp_enabled() == switched
    with pytest.raises(ZeroDivisionError), unplanned(gpu):
        raise ZeroDivisionError
    assert cudnn_sdp_enabled() == switched
    with unplanned(cpu):
        assert cudnn_sdp_enabled() == switched

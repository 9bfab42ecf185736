"""SCAFFOLD's control variates (Karimireddy, Kale, Mohri, Reddi, Stich and Suresh; ICML 2020).

Client y descends g_y(w) - c_y + c in place of its gradient g_y, where c_y says which way its own data pull and c, the
mean of all c_y, which way all data do. After K steps c_y becomes the mean of the g_y that it met on its way. That is
the paper's option II, c_y - c + (w_server - w_y) / (K eta), worked out from the gradients, so that it also holds where
the steps are Adam's, the gradients are clipped and eta falls: with plain steps both are the same.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CONTROL = "control"
"""Before a slash and a parameter's name, where c or c_y travel."""


class Controlled(nn.Module):
    """A network beside c_y, which is one buffer a parameter, so that a client's store keeps both."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        for index, parameter in enumerate(network.parameters()):
            self.register_buffer(f"control_{index}", torch.zeros_like(parameter))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.network(x, t)
        return output

    def controls(self) -> list[Tensor]:
        """c_y, in the order of the parameters."""
        return [self.get_buffer(f"control_{index}") for index, _ in enumerate(self.network.parameters())]

    def correct(self, common: Sequence[Tensor]) -> list[Tensor]:
        """From now on each gradient is corrected as soon as it is there, by c = `common`, ahead of clipping.

        Returns the sums of the gradients before that, which grow step by step.
        """
        sums = [torch.zeros_like(own) for own in self.controls()]
        rows = zip(self.network.parameters(), self.controls(), common, sums, strict=True)
        for parameter, own, mean, total in rows:
            parameter.register_post_accumulate_grad_hook(_correction(mean - own, total))
        return sums

    @torch.no_grad()
    def learn(self, sums: Sequence[Tensor], steps: int) -> None:
        """c_y becomes the mean of the `steps` gradients in `sums`."""
        for own, total in zip(self.controls(), sums, strict=True):
            own.copy_(total / steps)


def _correction(shift: Tensor, total: Tensor) -> Callable[[Tensor], None]:
    def correct(parameter: Tensor) -> None:
        if parameter.grad is not None:
            total.add_(parameter.grad)
            parameter.grad.add_(shift)

    return correct

"""What a teacher must be before it is asked: another network than the student, and at rest."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def refuse_student(student: nn.Module, teacher: nn.Module, role: str) -> None:
    """Refuse a teacher of which training the student would change the weights or the running statistics.

    Looks at the memory, not at the objects: a view of the student's weights is the student. Constants, such as the
    mean and standard deviation of a normalising layer, may be shared.

    Args:
        student: the network that is trained.
        teacher: the network that is asked.
        role: `teacher` or `natural_teacher`, for the message.

    Raises:
        ValueError: names what is shared.
    """
    own = {address for _, address in _memory(student)}
    shared = [name for name, address in _memory(teacher) if address in own]
    if shared:
        raise ValueError(
            f"the {role.replace('_', ' ')} shares weights with the student ({', '.join(shared[:3])}"
            f"{' …' if len(shared) > 3 else ''}): it would learn along; pass a copy (copy.deepcopy), trained beforehand"
        )


def refuse_training(teacher: nn.Module, role: str) -> None:
    """Refuse a teacher in train mode, in which it would change its BatchNorm statistics and drop units at random.

    Raises:
        ValueError: names the first such module.
    """
    for name, module in teacher.named_modules():
        if module.training:
            where = f"its {type(module).__name__} '{name}'" if name else type(module).__name__
            raise ValueError(
                f"the {role.replace('_', ' ')} must be in eval mode, but {where} is in train mode; call eval() on it, "
                "and see that no train() of its own undoes that"
            )


def _memory(network: nn.Module) -> Iterator[tuple[str, int]]:
    """Where what training changes lies: (name, address) of the parameters and the running statistics."""
    changed: dict[str, Tensor] = dict(network.named_parameters())
    for prefix, module in network.named_modules():
        if isinstance(module, _NormBase):
            changed |= {
                f"{prefix}.{name}".lstrip("."): buffer for name, buffer in module.named_buffers(recurse=False)
            }
    for name, tensor in changed.items():
        address = tensor.untyped_storage().data_ptr()
        if address:  # what has no memory shares none
            yield name, address

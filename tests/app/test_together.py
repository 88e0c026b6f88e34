"""The edge of a command in several processes."""

import pytest

from diffusion_var import launch
from diffusion_var.app import together
from diffusion_var.errors import InputError


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_is_left_alone_says_so_whichever_it_is(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first may have been killed before they met, and then says nothing for the others."""

    def nobody_is_there(*arguments: object, **options: object) -> None:
        raise RuntimeError("Timed out after 1 seconds waiting for clients. 1/2 clients joined.")

    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**names, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("accelerate.PartialState", nobody_is_there)
    with pytest.raises(InputError) as error:
        together._join(on_cpu=True)
    assert together.end(error.value) == 2
    assert "error: this process could not join the others" in capsys.readouterr().err
    assert not launch.is_joined()

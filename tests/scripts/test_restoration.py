"""The script behind results/restoration.md, on a few digits: cells are scored, kept and not made again, its closed form
is that of dense matrices, and its tables are of the cells."""

import json

import numpy as np
import pytest
import torch

import diffusion_var as dv

FEW = ("--data", "digits", "--count", "3", "--others", "2", "--operators", "inpainting", "--noise", "0.1")


@pytest.fixture
def script(load_script):
    return load_script("restoration")


def test_cells_are_kept_and_compared(script, digits_folder, capsys):
    ours = ("dct II, τ=10, log-SNR, 2 draws", "ΠGDM I")
    script["main"](["ours", *FEW, "--out", str(digits_folder), "--evaluations", "4", "--methods", *ours])
    script["main"](
        ["rivals", *FEW, "--out", str(digits_folder), "--evaluations", "4", "--methods", "ddrm", "ddrm, 2 draws"]
    )
    path = digits_folder / "digits.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["cell"]["method"] for entry in entries] == [*ours, "ddrm", "ddrm, 2 draws"]
    assert [entry["found"]["runs"] for entry in entries] == [4, 4, 4, 4]
    assert all(len(entry["found"]["psnr"]) == len(entry["found"]["ssim"]) == 3 for entry in entries)
    assert all(entry["found"]["settings"]["eta"] in (0.7, 0.85, 1.0) for entry in entries[2:])

    kept = path.read_bytes()
    capsys.readouterr()
    script["main"](["ours", *FEW, "--out", str(digits_folder), "--evaluations", "4", "--methods", *ours])
    assert (path.read_bytes(), capsys.readouterr().out) == (kept, "")

    at = ("--ours-at", "4", "--rivals-at", "4")
    script["main"](["tables", *FEW, "--out", str(digits_folder), *at, "--csv", str(digits_folder / "cells.csv")])
    printed = capsys.readouterr().out
    mine, theirs = (np.array(entries[k]["found"]["psnr"]) for k in (1, 2))
    ssim = np.mean(entries[1]["found"]["ssim"])
    assert f"| ΠGDM I | {mine.mean():.2f} ({ssim:.3f}) | {mine.mean():.2f} ({ssim:.3f}) |" in printed
    assert f"| DDRM | {theirs.mean():.2f} (" in printed
    difference = mine - theirs
    assert f"| ΠGDM I | {difference.mean():+.2f} ± {difference.std(ddof=1) / 3**0.5:.2f} (1) |" in printed
    lines = (digits_folder / "cells.csv").read_text().splitlines()
    assert len(lines) == 1 + len(entries)
    assert f"inpainting,0.1,ΠGDM I,4,3,{mine.mean():.3f},{ssim:.4f}," in lines


def test_means_are_over_operators_that_a_method_can_do(script, tmp_path, capsys):
    """And of whole rows alone: a mean over fewer operators than others have is told, or is none."""
    lines = []
    cells = {("inpainting", "ddrm"): 20, ("inpainting", "dps"): 10, ("blur", "dps"): 14}
    for (operator, method), psnr in cells.items():
        for k in (5, 10) if (operator, method) != ("blur", "dps") else (5,):
            cell = {"operator": operator, "noise": 0.1, "method": method, "evaluations": k}
            scores = {"psnr": [psnr, psnr + 1], "ssim": [0.5, 0.5], "runs": k, "seconds": 0.0, "settings": {}}
            lines.append(json.dumps({"cell": cell, "found": scores}) + "\n")
    (tmp_path / "digits.jsonl").write_text("".join(lines))
    few = ("--data", "digits", "--operators", "inpainting", "blur", "--noise", "0.1", "--count", "2")
    script["main"](["tables", *few, "--out", str(tmp_path), "--rivals-at", "10"])
    printed = capsys.readouterr().out
    assert "| DPS | 12.50 (0.500) |  |" in printed
    assert "| DDRM (of 1) | 20.50 (0.500) | 20.50 (0.500) |" in printed
    assert "| DPS | 10.50 (0.500) |  |  |" in printed
    script["main"](["tables", *few[:-1], "3", "--out", str(tmp_path), "--rivals-at", "10"])
    assert "| DPS | 10.50 (0.500), 2 |  |  |" in capsys.readouterr().out  # of two images, and three were asked for


def test_a_cell_of_fewer_images_is_made_again(script, tmp_path, digits_folder, capsys):
    """With the settings that it had, whatever is said of others."""
    (tmp_path / "digits.safetensors").write_bytes((digits_folder / "digits.safetensors").read_bytes())
    cell = {"operator": "inpainting", "noise": 0.1, "method": "ddrm", "evaluations": 4}
    settings = {"eta": 0.3, "etab": 1.0, "levels": "linear"}
    scores = {"psnr": [1.0, 1.0], "ssim": [0.0, 0.0], "runs": 4, "seconds": 0.0, "settings": settings}
    path = tmp_path / "digits.jsonl"
    path.write_text(json.dumps({"cell": cell, "found": scores}) + "\n")
    arguments = ["rivals", *FEW, "--out", str(tmp_path), "--evaluations", "4", "--methods", "ddrm"]
    for _ in range(2):
        script["main"](arguments)
    made = [json.loads(line)["found"] for line in path.read_text().splitlines()]
    assert [len(one["psnr"]) for one in made] == [2, 3]
    assert made[1]["settings"] == settings


def test_a_settings_file_is_used(script, digits_folder, tmp_path, capsys):
    cell = {"operator": "inpainting", "noise": 0.1, "method": "ddrm", "evaluations": 4}
    scores = {
        "psnr": [],
        "ssim": [],
        "runs": 4,
        "seconds": 0.0,
        "settings": {"eta": 0.3, "etab": 1.0, "levels": "linear"},
    }
    (tmp_path / "mnist.jsonl").write_text(json.dumps({"cell": cell, "found": scores}) + "\n")
    arguments = ["--out", str(tmp_path), "--evaluations", "4", "--methods", "ddrm", "--settings-of", "mnist"]
    script["main"](["rivals", *FEW, *arguments])
    assert "'eta': 0.3" in capsys.readouterr().out


def test_images_of_mnist(script, tmp_path):
    """The first test images, and of the training images a part that the network has not seen; a network is wanted."""
    images = (np.arange(55_002)[:, None, None] % 251 + np.zeros((28, 28))).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", train_x=images, test_x=images[:9])
    case = script["load_case"]("mnist", 3, 2, "digits", str(tmp_path / "mnist.npz"))
    seen = [len(part) for part in (case.images, case.others, case.table_images)]
    assert (seen, case.images.shape[1:]) == ([3, 2, 5000], (1, 28, 28))
    assert torch.equal(((case.images[:, 0, 0, 0] + 1) * 127.5).round(), torch.arange(3.0))
    with pytest.raises(SystemExit, match="give it as --model, or take a mixture"):
        script["load_case"]("mnist", 3, 2)


def test_the_closed_form_posterior(script):
    """E[x_0|y] of two components, by hand: each one's Wiener filter, weighed by its density of y; draws have its mean
    and covariance, to 4 standard errors."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 4, 4)) / 2
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(4)
    means, weights = rng.normal(size=(2, 1, 2, 2)), np.array([0.3, 0.7])
    mixture = dv.oracles.MixtureDenoiser(dv.NoiseSchedule.linear(50), means, covariances=covariances, weights=weights)
    A, y, sigma = rng.normal(size=(3, 4)), rng.normal(size=3), 0.4

    each, second, density = [], [], []
    for m, C, w in zip(means.reshape(2, 4), covariances, weights, strict=True):
        S = A @ C @ A.T + sigma**2 * np.eye(3)
        r = y - A @ m
        each.append(m + C @ A.T @ np.linalg.solve(S, r))
        second.append(C - C @ A.T @ np.linalg.solve(S, A @ C) + np.outer(each[-1], each[-1]))
        density.append(w * np.exp(-0.5 * r @ np.linalg.solve(S, r)) / np.linalg.det(S) ** 0.5)
    r = np.array(density) / np.sum(density)
    expected = r @ np.array(each)
    covariance = np.einsum("j,jab->ab", r, np.array(second)) - np.outer(expected, expected)

    count = 20_000
    many = torch.from_numpy(np.tile(y, (count, 1)))
    mean, draw = script["exact_posterior"](mixture, torch.from_numpy(A), many, sigma, seed=0)
    assert np.abs(mean[0].flatten().numpy() - expected).max() < 1e-6
    drawn = draw.flatten(1).double().numpy()
    assert np.abs((drawn.mean(0) - expected) / np.sqrt(np.diag(covariance) / count)).max() < 4
    spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / count)
    assert np.abs((np.cov(drawn.T) - covariance) / spread).max() < 4.5  # two components: not quite Gaussian


@pytest.mark.parametrize("operator", ["inpainting", "box", "super-resolution", "blur", "compressed sensing"])
def test_operators_are_linear_and_the_same_twice(script, operator):
    make, measured, matrix_of = (script[name] for name in ("make_physics", "measured", "matrix_of"))
    shape = (1, 8, 8)
    physics, again = make(operator, shape, 0.1), make(operator, shape, 0.1)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    A = matrix_of(physics.A, shape)
    assert (physics.A(images).flatten(1) - images.flatten(1) @ A.float().T).abs().max() < 1e-5
    y = measured(physics, images)
    assert torch.equal(y, measured(again, images))
    alone = measured(physics, images[1:], first=1)  # image 1 has its own noise wherever it stands
    assert (y[1:] - alone).abs().max() < 1e-5
    assert 0.02 < (y - physics.A(images)).std() < 0.2

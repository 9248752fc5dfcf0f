"""Videos of your own in ten lines: fit, save, load, predict. Seconds on a CPU.

python examples/own_data.py            # renders a folder of clips first
python examples/own_data.py VIDEOS     # or your own: a folder a class, every fourth clip held out
"""

import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.data import Dataset

import vidpipe
from vidpipe.backbones.still import WEIGHTS
from vidpipe.video.config import SynthConfig
from vidpipe.video.rendered import render_clip, write_clip

FRAMES = 8


class Videos(Dataset):
    """Items (frames, label): uint8 (FRAMES, 3, H, W), evenly from the file, and the class's number."""

    def __init__(self, files: list[Path], classes: list[str]) -> None:
        self.files, self.classes = files, classes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with av.open(str(self.files[i])) as video:
            frames = np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])
        chosen = frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
        return torch.from_numpy(chosen).permute(0, 3, 1, 2), self.classes.index(
            self.files[i].parent.name
        )


def render(root: Path) -> None:
    """A small data set whose two classes hold the same pictures in either order."""
    config = SynthConfig(pairs=("horizontal",))
    for name in config.classes:
        (root / name).mkdir()
        for index in range(20):
            write_clip(root / name / f"{index}.mp4", render_clip(config, name, index), 16, crf=14)


def main(root: Path, out: Path) -> None:
    classes = sorted(folder.name for folder in root.iterdir())
    files = [file for name in classes for file in sorted((root / name).iterdir())]
    train = Videos([file for i, file in enumerate(files) if i % 4], classes)
    val = Videos(files[::4], classes)

    torch.manual_seed(0)
    model = vidpipe.create_model(
        "st_adapter",
        "vit_still_patch12_48",  # such as vit_base_patch16_clip_quickgelu_224 with weights="hub"
        num_classes=len(classes),
        num_frames=FRAMES,
        weights=WEIGHTS,
        head_dropout=0.0,
    )
    vidpipe.fit(model, train, val, epochs=10, batch_size=8, lr=5e-3, on_epoch=print)
    vidpipe.save(model, out, classes=classes)

    clf = vidpipe.load(out)
    for file in val.files[:: len(val) // 4]:
        print(f"{file.parent.name}/{file.name}:", *clf.predict(file, top=2))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) == 1:
            (videos := Path(folder) / "videos").mkdir()
            render(videos)
        else:
            videos = Path(sys.argv[1])
        main(videos, Path(folder) / "model")

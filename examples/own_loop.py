"""A training loop of your own around a vidpipe model, on rendered clips: seconds on a CPU.

python examples/own_loop.py
"""

import torch
import torch.nn.functional as F

import vidpipe
from vidpipe.backbones.still import WEIGHTS
from vidpipe.video.config import SynthConfig
from vidpipe.video.rendered import render_clip

FRAMES, CLASSES = 8, ["move_left", "move_right"]  # the same pictures in either order


def clip(label: int, index: int) -> torch.Tensor:
    """(FRAMES, 3, H, W) uint8, evenly from a clip of some 25 frames; sizes differ from clip to clip."""
    frames = torch.from_numpy(
        render_clip(SynthConfig(pairs=("horizontal",)), CLASSES[label], index)
    )
    return frames.permute(0, 3, 1, 2)[torch.linspace(0, len(frames) - 1, FRAMES).round().long()]


torch.manual_seed(0)
model = vidpipe.create_model(
    "st_adapter", "vit_still_patch12_48", num_classes=2, num_frames=FRAMES, weights=WEIGHTS
)
optimizer = torch.optim.AdamW(model.parameter_groups(lr=5e-3, weight_decay=0.01))

labels = torch.arange(48) % 2
video = torch.cat([model.preprocess(clip(int(y), i // 2)) for i, y in enumerate(labels)])
for epoch in range(8):
    for batch in torch.randperm(32).split(8):
        loss = F.cross_entropy(model(video[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

model.eval()
with torch.no_grad():
    right = (model(video[32:]).argmax(1) == labels[32:]).sum().item()
print(f"{right} of 16 unseen clips right")

"""Which person does what: boxes of a key frame, several actions a box (AVA).

Formats: https://research.google.com/ava/download.html.
"""

from vidpipe.tasks.detection.ava_metric import frame_map as frame_map

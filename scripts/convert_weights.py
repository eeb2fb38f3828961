"""Converts published reward checkpoints (.pt, .pth, .bin) to safetensors, reading weights only.

    python scripts/convert_weights.py HPS_v2.1_compressed.pt weights/hps-v2.1 --layout hps
    python scripts/convert_weights.py ImageReward.pt weights/image-reward --layout image-reward
    python scripts/convert_weights.py aesthetic-model.pth weights/aesthetic.safetensors

The installed package offers the same as ``python -m rewards.conversion``.
"""

from rewards.conversion import main

if __name__ == "__main__":
    print(f"wrote {main()}")

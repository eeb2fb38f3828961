"""Generate steered pictures: ``steer generate`` for several processes.

    accelerate launch scripts/generate.py --pipeline shapes-sd --sampler fk --reward shapes-clip \
        --prompts_file shapes:hard --output outputs/hard

Prompts are divided among the processes by their key, so the pictures do not depend on how many there
are.
"""

import sys

from steering.command.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))

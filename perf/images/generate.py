"""Files of a fixed seed that compress about as well as programs do: generate.py DIR COUNT MEAN-BYTES SEED"""
import os
import random
import sys

directory, count, mean, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
words = [rng.randbytes(16) for _ in range(64)]
for number in range(count):
    # A thousand files a directory, in one directory where there are few.
    parent = os.path.join(directory, f"{number // 1000:04}") if count > 1000 else directory
    os.makedirs(parent, exist_ok=True)
    size = max(16, int(rng.expovariate(1 / mean)))
    with open(os.path.join(parent, f"{number:07}"), "wb") as file:
        piece = b"".join(rng.randbytes(8) + rng.choice(words) for _ in range(size // 24 + 1))
        file.write(piece[:size])

#!/usr/bin/env python
"""The Trainer of Hugging Face: a small GPT-2 that tells of which token a text has the most.

    pip install transformers accelerate
    python examples/hugging_face.py

The model is made from a configuration and the texts are made up: nothing is downloaded.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the clone that holds `net`
import net  # installed: import deep_compression as net

try:
    import accelerate  # noqa: F401 (the Trainer's own dependency)
    from transformers import GPT2Config, GPT2ForSequenceClassification, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
except ImportError:
    print("left out: this example needs transformers and accelerate (pip install both)")
    sys.exit(0)

torch.manual_seed(42)
torch.set_num_threads(1)
TOKENS, LENGTH = 6, 24


def texts(count: int) -> list[dict[str, torch.Tensor]]:
    labels = torch.randint(TOKENS, (count,))
    noise, told = torch.randint(TOKENS, (count, LENGTH)), torch.rand(count, LENGTH) < 0.4
    tokens = torch.where(told, labels[:, None], noise)
    return [{"input_ids": t, "labels": n} for t, n in zip(tokens, labels, strict=True)]


training, test = texts(1024), texts(512)
sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "vocab_size": TOKENS + 2}
ends = {"bos_token_id": TOKENS, "eos_token_id": TOKENS, "pad_token_id": TOKENS + 1}
model = GPT2ForSequenceClassification(GPT2Config(num_labels=TOKENS, **sizes, **ends))


def train(optimizer: torch.optim.Optimizer, epochs: int) -> float:
    """Percent of the test texts that the Trainer's model gets wrong."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "seed": 42}
        options |= {"per_device_train_batch_size": 64, "logging_strategy": "no"}
        arguments = TrainingArguments(folder, num_train_epochs=epochs, disable_tqdm=True, **options)
        trainer = Trainer(model, arguments, train_dataset=training, optimizers=(optimizer, None))
        trainer.remove_callback(PrinterCallback)  # a line for every phase
        trainer.train()
        found = trainer.predict(test)
    return 100 * float((found.predictions.argmax(1) != found.label_ids).mean())


before = train(torch.optim.AdamW(model.parameters(), 2e-3), 4)

pruner = net.Pruner(model, density=0.2, steps=48)  # of the projections, which are Conv1D
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
pruner.attach(optimizer)
train(optimizer, 4)
pruner.detach()

sharing = net.WeightSharing(model, bits=4)  # the embeddings, too
optimizer = torch.optim.AdamW(sharing.parameters(), 5e-4)
sharing.attach(optimizer)
after = train(optimizer, 1)
sharing.detach()

with tempfile.TemporaryDirectory() as folder:
    size = net.encoding.save(model.state_dict(), folder)
    model.load_state_dict(net.encoding.load(folder)[0])
dense = 4 * sum(p.numel() for p in model.parameters())
print(f"{dense:,} -> {size:,} bytes, {dense / size:.1f}x")
print(f"test error {before:.2f} % -> {after:.2f} %")

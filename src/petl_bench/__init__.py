"""petl_bench compares parameter-efficient transfer-learning methods on one backbone, one task, one machine.

Importing it makes its methods known to PEFT: `PeftModel.from_pretrained` then loads their adapters.
"""

from wrapt import register_post_import_hook

__version__ = "0.1.0"

# Runs now if PEFT is already imported, else as soon as it is: importing it here would cost every command seconds.
register_post_import_hook("petl_bench.methods.registry:on_peft_import", "peft")

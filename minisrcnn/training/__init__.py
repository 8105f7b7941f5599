"""Train the network on patches of pictures: reproducible, and safe to interrupt.

``settings`` what is asked for; ``recipes`` how to train; ``pictures`` what is trained on and
scored; ``order`` when each patch comes; ``kept`` what is held of the pictures; ``network`` what
training begins with; ``steppers`` who makes a step; ``ranks`` several processes; ``loop`` the
training itself, :func:`minisrcnn.training.loop.train`; ``files`` its folder, log and checkpoint;
``interrupts`` Ctrl-C; ``display`` what it says; ``state`` how far it has come; ``report`` what it
leaves to look at.
"""

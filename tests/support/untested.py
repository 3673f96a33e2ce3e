"""What a run of the tests could not test on this machine, by the reasons of its skips, and how each can be had."""

from collections import Counter

# part of a reason -> what it leaves untested, and how to get it
REMEDIES = {
    "no chromium": ("the report in a browser", "put Chromium on the PATH, such as with `apt-get install chromium`"),
    "playwright": ("the report in a browser", "python -m pip install playwright"),
    "pdflatex": ("the LaTeX tables", "install a LaTeX, such as with `apt-get install texlive-latex-recommended`"),
    "pynvml": ("the energy of a GPU", "python -m pip install nvidia-ml-py"),
    "no GPU": ("the energy of a GPU", "run the tests on a machine with a CUDA GPU"),
    "CUDA GPU": ("what a GPU does", "run the tests on a machine with one"),
    "OFA_TEST_CIFAR10": ("CIFAR-10's own files", "set OFA_TEST_CIFAR10 to a folder with its train.npz and test.npz"),
    "OFA_TEST_INCEPTION": ("Inception's own weights", "set OFA_TEST_INCEPTION to their file (docs/reproduce.md names the download)"),
    "tensorboard": ("what TensorBoard is shown", "python -m pip install tensorboard"),
    "wandb": ("what Weights & Biases is shown", "python -m pip install wandb"),
    "C++ compiler": ("torch.compile on a CPU", "install g++ or clang++"),
    "glibc": ("the page faults of sampling", "run the tests on Linux with glibc"),
    "superuser": ("a folder that may not be written", "run the tests as another user than root"),
}


def pytest_terminal_summary(terminalreporter):
    """Says at the end of a run what was not tested, and how to get it."""
    lines = not_tested(terminalreporter.stats.get("skipped", []))
    if lines:
        terminalreporter.section("not tested here")
    for line in lines:
        terminalreporter.write_line(line)


def not_tested(skipped):
    """Returns a line for each reason: how many tests it left out, what of, and how to get it."""
    counts = Counter(reason_of(report) for report in skipped)
    return [f"{count} test{'s' * (count > 1)}: {told(reason)}" for reason, count in counts.most_common()]


def reason_of(report):
    """Returns why a test was skipped."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def told(reason):
    """Returns what a reason leaves untested and the remedy, or the reason alone where there is none."""
    for part, (what, remedy) in REMEDIES.items():
        if part in reason:
            return f"{what} ({reason}); to test it: {remedy}"
    return reason

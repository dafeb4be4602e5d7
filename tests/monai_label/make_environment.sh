#!/usr/bin/env bash
# Build a virtual environment with a MONAI Label server and this project's package: `make_environment.sh DIR`.
#
# Not with plain `pip install monailabel`: that replaces a CPU build of PyTorch by one for CUDA, and takes releases of
# DICOM packages with which the server does not start. So PyTorch comes first, monailabel comes without its dependencies,
# and requirements.txt says which versions work.
#
# For the CPU build of PyTorch on any machine, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; without it pip
# takes what its index has. Python 3.10 to 3.12. PYTHON names another interpreter. Nothing is done where DIR is up to date.
set -euo pipefail
directory=${1:?usage: make_environment.sh DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
stamp=$directory/.installed
if [[ -f $stamp && ! $here/requirements.txt -nt $stamp && ! $here/make_environment.sh -nt $stamp &&
    ! $root/pyproject.toml -nt $stamp ]]; then
    exit 0
fi

"${PYTHON:-python3}" -m venv "$directory"
python=$directory/bin/python
install() { "$python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }

install "$(grep '^torch==' "$here/requirements.txt")"
# Together: pip then says so if the package's own ranges and these versions do not agree.
install -r "$here/requirements.txt" -e "$root"
install --no-deps monailabel==0.8.5

# MONAI Label imports torchvision for two functions that no bundle here reaches. Its build has to fit that of PyTorch;
# where there is none that does, modules that refuse to work let the server start.
if ! "$python" -c "import torchvision" 2>/dev/null; then
    install --no-deps torchvision==0.28.0 || true
fi
if ! "$python" -c "import torchvision" 2>/dev/null; then
    "$python" -m pip uninstall --quiet --yes torchvision 2>/dev/null || true
    stub=$("$python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/torchvision
    mkdir -p "$stub"
    echo '__version__ = "0.0.0+stub"' >"$stub/__init__.py"
    for name in make_grid save_image; do
        printf 'def %s(*_, **__):\n    raise NotImplementedError("no torchvision fits this PyTorch")\n\n\n' "$name"
    done >"$stub/utils.py"
fi

"$python" -c "import monai, monailabel, regzoo, torch; print('MONAI Label', monailabel.__version__, 'with MONAI', \
monai.__version__, 'and PyTorch', torch.__version__)"
touch "$stamp"

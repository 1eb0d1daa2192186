# Sourced by the other scripts: makes .venv, installs requirements.txt into it if it has changed since,
# puts it first on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! cmp -s requirements.txt .venv/installed.txt; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "error: Python 3.11 or newer is needed (PYTHON=... names one)" >&2; exit 2; }
    echo "installing requirements.txt into .venv (once, a minute or more) ..."
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed.txt
fi
export PATH="$PWD/.venv/bin:$PATH"

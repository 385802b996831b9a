# shellcheck shell=bash
# Shared by the scripts of this folder; sourced, not run.

have_cargo() { command -v cargo >/dev/null || [ -x "$HOME/.cargo/bin/cargo" ]; }

# The first interpreter that the pinned packages support.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# site_packages VENV: the folder that holds the packages of VENV.
site_packages() {
  "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])'
}

# pip_install VENV REQUIREMENTS: installs the listed packages without their dependencies. pip caches each download, so a
# second environment or an interrupted run downloads nothing twice.
pip_install() { run_pip "$1" "$2" --no-deps; }

# pip_install_tree VENV REQUIREMENTS: installs the listed packages and their dependencies.
pip_install_tree() { run_pip "$1" "$2"; }

run_pip() {
  local venv="$1" requirements="$2"
  shift 2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --retries 10 --timeout 120 \
    --only-binary :all: --requirement "$requirements" "$@"
}

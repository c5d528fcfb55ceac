# Sourced by the scripts, in any POSIX shell: sets ROOT (the project) and PYTHON (an interpreter that has the requirements), and
# makes ROOT/.venv first if no interpreter has them. PYTHON=... in the environment is taken as it is.

# Links are followed. No `cd`, which prints a path if CDPATH is set. Only bash has BASH_SOURCE, which also works at a prompt.
ROOT=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE:-$0}")")")
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
export GLOG_v="${GLOG_v:-3}" # MindSpore's warnings are for its developers; GLOG_v=2 shows them

# On NPUs Python 3.11 is best, 3.9 to 3.12 work. MindSpore stays at 2.8.0: 2.10 breaks with NumPy 2 in its own data set code, and
# needs protobuf 7, which CANN 8.5 cannot have (it needs 3.20).
# With NPUs a virtual environment has to see the packages that are installed for CANN, and has more requirements, which exclude
# those of ONNX (requirements-ascend.txt).
if ls ${NPU_DEVICES:-/dev/davinci[0-9]*} >/dev/null 2>&1; then
    NPU=1 VENV_OPTIONS=--system-site-packages REQUIREMENTS=requirements-ascend.txt
else
    NPU='' VENV_OPTIONS='' REQUIREMENTS=requirements-export.txt
fi

# By what pip has recorded, the file RECORD last of all: importing MindSpore would take as long as all the rest here.
_has_requirements() {
    "$1" -c 'from importlib import metadata, util
mindspore = metadata.distribution("mindspore")
assert mindspore.version == "2.8.0" and mindspore.read_text("RECORD")
assert all(map(util.find_spec, ("numpy", "easydict", "yaml", "tqdm", "psutil", "msgpack")))' >/dev/null 2>&1
}

if [ -z "${PYTHON:-}" ]; then
    for PYTHON in python3 "$ROOT/.venv/bin/python" ''; do
        [ -n "$PYTHON" ] && command -v "$PYTHON" >/dev/null && _has_requirements "$PYTHON" && break
    done
fi
if [ -z "$PYTHON" ]; then
    for _base in python3 python3.11 python3.10 python3.12 python3.9; do
        "$_base" -c 'import sys, venv, ensurepip; assert (3, 9) <= sys.version_info < (3, 13)' >/dev/null 2>&1 && break
        _base=''
    done
    if [ -z "$_base" ]; then
        echo 'error: MindSpore 2.8.0 needs Python 3.9 to 3.12 with the venv module; install one (on Debian: apt install' \
            'python3-venv) or set PYTHON' >&2
        exit 2
    fi
    echo "installing the requirements into $ROOT/.venv, once; the largest is MindSpore, a download of 800 MB"
    PYTHON="$ROOT/.venv/bin/python"
    [ -t 1 ] && _quiet='' || _quiet=-q # on a terminal pip shows how far the download is
    "$_base" -m venv $VENV_OPTIONS "$ROOT/.venv" &&
        "$PYTHON" -m pip install $_quiet -r "$ROOT/$REQUIREMENTS" -r "$ROOT/requirements-report.txt" || {
        echo "error: the requirements could not be installed; see above, then remove $ROOT/.venv and try again" >&2
        exit 1
    }
fi

# With the memory allocator in MindSpore's own wheel a graph is compiled in three quarters of the time. Beside an NPU it was not
# tried, and on processors of another kind it may be built for another size of pages. LD_PRELOAD= before a command: without.
if [ -z "$NPU" ] && [ -z "${LD_PRELOAD+set}" ] && [ "$(uname -m)" = x86_64 ]; then
    _allocator=$("$PYTHON" -c 'from importlib import metadata
print(metadata.distribution("mindspore").locate_file("mindspore/lib/libjemalloc.so.2"))' 2>/dev/null) || true
    case $_allocator in
    *[[:space:]:]*) ;; # would be two paths
    *) [ ! -f "$_allocator" ] || export LD_PRELOAD="$_allocator" ;;
    esac
fi

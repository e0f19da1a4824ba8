# Finds cargo and a C compiler; sourced by tests/run and control/demo. Sets CARGO.
#
# Under sudo the invoking user's toolchain is used, and what is built goes to a target directory
# of root's own, so that no root-owned file ends up in the user's target/.

find_cargo() {
  command -v cargo && return
  local home
  for home in "$HOME" "$(getent passwd "${SUDO_USER:-$(id -un)}" | cut -d: -f6)"; do
    [ -x "$home/.cargo/bin/cargo" ] && { echo "$home/.cargo/bin/cargo"; return; }
  done
  return 1
}

CARGO=$(find_cargo) || {
  echo "causeway: cargo was not found; install Rust 1.95 or newer (https://rustup.rs), then try again" >&2
  return 1
}
PATH=$(dirname "$CARGO"):$PATH
export CARGO PATH
if [ -n "${SUDO_USER:-}" ] && [ "$(id -u)" = 0 ] && [ "$SUDO_USER" != root ]; then
  user_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
  [ -d "$user_home/.rustup" ] && export RUSTUP_HOME="${RUSTUP_HOME:-$user_home/.rustup}"
  export CARGO_HOME="${CARGO_HOME:-/var/cache/causeway/cargo}"
  export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-/var/cache/causeway/target}"
fi

if ! command -v cc >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get -qq update &&
      DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc libc6-dev >/dev/null
  fi
  command -v cc >/dev/null || {
    echo "causeway: a C compiler is needed for the bundled SQLite; run: apt-get install gcc libc6-dev" >&2
    return 1
  }
fi

# shellcheck shell=sh
# Sourced by ./check and ./rehearse: `prepare` makes a Debian 12 or 13 machine ready to run them.
#
# It may be killed at any moment and run again. What it relies on:
#   - Debian packages: dpkg's own record says what is there; half-installed counts as missing.
#   - .venv: its file `prepared` is written last and names what it was built from. No such file:
#     built anew. Another content: brought up to date in place.
#   - openssh-server, btrbk and rsync, if we install them: .prepare/services names their services from before
#     the installation until they are disabled. A machine that has them already is left as it is.
# It speaks on stderr only, and only when there is something to do: stdout belongs to the caller.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

POLICY=/usr/sbin/policy-rc.d
POLICY_MARK='written by btrsync tools/prepare.sh'

prepare() {
    [ "$(id -u)" -eq 0 ] ||
        fail "needs root, because it makes loop devices, mounts and namespaces: run  sudo $0 $*"
    # One preparation at a time in one clone; nothing to do costs no lock.
    if ! is_prepared; then
        mkdir -p .prepare
        (
            # Held too by an apt-get or pip that outlived a killed run: it is let finish.
            flock --nonblock 9 || {
                say "waiting for another preparation of this clone to end"
                flock 9
            }
            is_prepared || prepare_anew
        ) 9>.prepare/lock || exit 1
    fi
}

# What ./rehearse does without root: it rehearses in a guest, and changes nothing outside of this clone. No
# Debian package is installed; those that are missing are named.
GUEST_PACKAGES='ca-certificates debian-archive-keyring e2fsprogs python3 python3-venv util-linux'

prepare_for_guests() {
    # shellcheck disable=SC2086 # words are wanted
    missing=$(missing_of $GUEST_PACKAGES)
    [ -z "$missing" ] || fail "a guest needs Debian packages, and only root can install them: apt-get install ${missing% }"
    venv_is_current && return 0
    mkdir -p .prepare 2>/dev/null && [ -w .prepare ] && [ -w . ] ||
        fail "the clone has no current .venv, and you may not write to it: clone it again, or run ./rehearse as root once"
    (
        flock --nonblock 9 || {
            say "waiting for another preparation of this clone to end"
            flock 9
        }
        venv_is_current || make_venv
    ) 9>.prepare/lock || exit 1
}

is_prepared() {
    [ ! -e .prepare/services ] && [ -z "$(missing_packages)" ] && venv_is_current
}

prepare_anew() {
    install_packages
    disable_new_services
    venv_is_current || make_venv
}

# ------------------------------------------------------------------------------ Debian packages

wanted_packages() { sed -e 's/#.*//' packages.txt; }

missing_packages() {
    # shellcheck disable=SC2046 # words are wanted
    missing_of $(wanted_packages)
}

missing_of() { # PACKAGE...
    command -v dpkg-query >/dev/null || return 0 # not Debian: what is missing will be told by name
    # Its status is 1 as soon as one package is unknown.
    installed=" $(dpkg-query --show --showformat='${Package}=${db:Status-Status} ' "$@" 2>/dev/null || :) "
    for package in "$@"; do
        case $installed in
        *" $package=installed "*) ;;
        *) printf '%s ' "$package" ;;
        esac
    done
}

install_packages() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    say "installing Debian packages: $missing"
    note_new_services
    hold_services_back
    # Whatever ends us, the policy goes; after SIGKILL the next run removes it.
    trap release_services EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    started=$(date +%s)
    mend_dpkg
    # shellcheck disable=SC2086 # words are wanted
    apt_install $missing || {
        say "reading the package lists again"
        apt_get update -o APT::Update::Error-Mode=any && apt_install $missing
    } || give_up_on_apt
    release_services
    trap - EXIT INT TERM HUP
    [ -z "$(missing_packages)" ] || fail "apt-get ended well, yet these are missing: $(missing_packages)"
    say "installed them in $(($(date +%s) - started)) s"
}

give_up_on_apt() {
    if grep -qE 'Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable|Connection (timed out|refused)|Unable to connect' .prepare/apt.log; then
        fail "no network: Debian's archive cannot be reached, and packages are missing: $missing"
    fi
    tail -n 15 .prepare/apt.log >&2
    fail "apt-get failed (above; all of it in .prepare/apt.log); missing: $missing"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
        "$@" >.prepare/apt.log 2>&1 </dev/null
}

apt_install() {
    apt_get install --yes --no-install-recommends --simulate "$@" &&
        apt_get install --yes --no-install-recommends "$@"
}

# A run killed inside apt leaves packages unpacked or half installed; apt refuses to go on then.
mend_dpkg() {
    [ -n "$(dpkg --audit 2>&1)" ] || [ -n "$(ls /var/lib/dpkg/updates 2>/dev/null)" ] || return 0
    say "finishing an installation that was interrupted"
    # dpkg does not wait for the lock that an apt-get left running may still hold; apt-get check does.
    apt_get check || :
    DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --configure -a \
        >.prepare/dpkg.log 2>&1 </dev/null || :
    apt_get install --yes --no-install-recommends --fix-broken || :
}

# --------------------------------------------------------------- packages without their services
#
# Rehearsal hosts run their own sshd from openssh-server, and the benchmark calls btrbk and rsync. What
# Debian starts and enables with them would change this machine, which nobody asked
# for. invoke-rc.d and deb-systemd-invoke ask policy-rc.d before they start anything (Debian policy,
# section 9.3.3.1); afterwards the services are disabled, so that they do not start at boot either.

note_new_services() {
    for package in $missing; do
        case $package in
        openssh-server) echo ssh.service ssh.socket ;;
        btrbk) echo btrbk.timer ;;
        rsync) echo rsync.service ;;
        esac
    done >.prepare/services.new
    # A killed run may have noted some that are still to be disabled.
    cat .prepare/services.new >>.prepare/services
    rm -f .prepare/services.new
}

hold_services_back() {
    release_services # one that a killed run left
    [ ! -e "$POLICY" ] || return 0 # an administrator's own: disabled and stopped afterwards instead
    cat >"$POLICY.new" <<END
#!/bin/sh
# $POLICY_MARK, which removes it again
case \$1 in
ssh* | btrbk* | nftables* | rsync*) exit 101 ;;
esac
exit 0
END
    chmod 755 "$POLICY.new"
    mv "$POLICY.new" "$POLICY"
}

release_services() {
    rm -f "$POLICY.new"
    if grep -qs "$POLICY_MARK" "$POLICY"; then rm -f "$POLICY"; fi
}

disable_new_services() {
    [ -e .prepare/services ] || return 0
    release_services
    services=$(sort -u .prepare/services | tr '\n' ' ')
    if [ -n "$services" ]; then
        say "new here, and kept off (systemctl enable --now turns one on): $services"
        # Names that this release does not have are no failure.
        for service in $services; do
            if [ -d /run/systemd/system ]; then systemctl disable --now "$service" || :; fi
            # All that disabling is where systemd does not run; upgrades take it as the owner's wish.
            rm -f /etc/systemd/system/*.wants/"$service"
        done >.prepare/services.log 2>&1
        case $services in
        *ssh.service*)
            [ -d /run/systemd/system ] || service ssh stop || :
            if command -v update-rc.d; then update-rc.d ssh disable || :; fi
            ;;
        esac >>.prepare/services.log 2>&1
    fi
    rm -f .prepare/services
}

# ---------------------------------------------------------------------------------------- .venv

venv_is_current() {
    [ -f .venv/prepared ] && [ "$(cat .venv/prepared)" = "$(venv_stamp)" ]
}

# What .venv was built from; empty words where it does not work at all.
venv_stamp() {
    sha256sum pyproject.toml constraints.txt
    pwd -P
    .venv/bin/python -c 'import sys; print(sys.version)' 2>/dev/null || :
}

choose_python() {
    for candidate in /usr/bin/python3 "$(command -v python3 || :)"; do
        if [ -x "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

make_venv() {
    started=$(date +%s)
    if [ -f .venv/prepared ] && .venv/bin/python -c 'import pip' 2>/dev/null &&
        [ "$(sed -n 3p .venv/prepared)" = "$(pwd -P)" ]; then
        say "bringing .venv up to date"
    else
        python=$(choose_python) || fail "no Python of 3.11 or newer with its venv module: is this Debian 12 or newer?"
        say "making .venv with $("$python" -V) ($python)"
        "$python" -m venv --clear .venv >.prepare/pip.log 2>&1 </dev/null || give_up_on_pip
    fi
    rm -f .venv/prepared
    .venv/bin/python -m pip install --disable-pip-version-check --no-input \
        --constraint constraints.txt --editable '.[dev]' >.prepare/pip.log 2>&1 </dev/null || give_up_on_pip
    venv_stamp >.venv/prepared.new
    mv .venv/prepared.new .venv/prepared
    say "installed the $(.venv/bin/python -m pip list --format=freeze 2>/dev/null | wc -l) Python packages of .venv in $(($(date +%s) - started)) s"
}

give_up_on_pip() {
    if grep -qE 'NewConnectionError|NameResolutionError|name resolution|Network is unreachable|ConnectTimeout|Connection refused' .prepare/pip.log; then
        fail "no network: the Python package index cannot be reached, and .venv is not complete"
    fi
    if grep -q 'CERTIFICATE_VERIFY_FAILED' .prepare/pip.log; then
        fail "the certificate of the Python package index is not trusted here: set PIP_CERT, or add its authority to ca-certificates"
    fi
    grep -E '(ERROR|error):? ' .prepare/pip.log | cut -c 1-300 | tail -n 4 >&2 || :
    fail "pip failed (above; all of it in .prepare/pip.log)"
}

//! The procedures of the handbook, as they stand there, on machines that are directories and addresses of this one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use skep_tests::process::skep_binary;
use tempfile::TempDir;

const HANDBOOK: &str = include_str!("../../docs/operations.md");
const ALERTS: &str = include_str!("../../host/deploy/alerts.yml");

/// What stands for systemd: it starts what the unit starts, and waits until the node is ready, as `Type=notify` does.
const SYSTEMCTL: &str = r#"#!/usr/bin/env bash
set -euo pipefail
home=$MACHINE; pid=$home/pid
# What was killed may stay a zombie where nobody waits for it.
running() { [ -e "$pid" ] && grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$(cat "$pid")/status" 2>/dev/null; }
start() {
    running && return
    : > "$home/stdout"
    setsid skep serve --config "$home/etc/skep.toml" --data-dir "$home/data" < /dev/null >> "$home/stdout" 2>> "$home/log" &
    echo $! > "$pid"
    until grep -q '^ready' "$home/stdout"; do
        running || { tail -n 5 "$home/log" >&2; exit 1; }
        sleep 0.05
    done
}
stop() {
    running || return 0
    kill -TERM "$(cat "$pid")"
    while running; do sleep 0.05; done
}
case "$1 $2" in
    "start skep") start ;;
    "stop skep") stop ;;
    "restart skep") stop; start ;;
    *) echo "the handbook says: systemctl $*" >&2; exit 2 ;;
esac
"#;

const SCP: &str = r#"#!/usr/bin/env bash
set -euo pipefail
to=${2%%:*}; path=${2#*:}
cp "$1" "$(dirname "$MACHINE")/$to${path#"$MACHINE"}"
"#;

const HOSTNAME: &str = "#!/usr/bin/env bash\nbasename \"$MACHINE\"\n";

/// Machines `m1`, `m2` and so on. What runs on them is killed when this is dropped.
struct Machines {
    dir: TempDir,
    /// The first three numbers of their addresses, which are local and nobody else's.
    network: String,
}

impl Machines {
    fn new(count: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let process = std::process::id();
        let network = format!("127.{}.{}", 1 + (process >> 8) % 250, process % 256);
        let machines = Self { dir, network };
        let bin = machines.dir.path().join("bin");
        fs::create_dir(&bin).expect("a directory");
        for (name, script) in [
            ("systemctl", SYSTEMCTL),
            ("scp", SCP),
            ("hostname", HOSTNAME),
        ] {
            let path = bin.join(name);
            fs::write(&path, script).expect("a script");
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("its mode");
        }
        for number in 1..=count {
            let etc = machines.home(&format!("m{number}")).join("etc");
            fs::create_dir_all(etc).expect("a directory");
        }
        machines
    }

    fn home(&self, machine: &str) -> PathBuf {
        self.dir.path().join(machine)
    }

    /// Runs a section of the handbook.
    fn run(&self, section: &str) {
        let heading = format!("## {section}\n");
        let (_, text) = HANDBOOK.split_once(&heading).expect("the section is there");
        let text = text.split("\n## ").next().unwrap_or_default();
        let blocks = text.split("```sh\n").skip(1);
        let blocks: Vec<_> = blocks.filter_map(|block| block.split_once("```")).collect();
        assert!(!blocks.is_empty(), "`{section}` has commands");
        for (block, _) in blocks {
            let (on, commands) = block.split_once('\n').expect("lines");
            let on = on
                .strip_prefix("# on ")
                .expect("a block says where it is run");
            let machines: Vec<_> = on
                .split([',', ' '])
                .filter(|word| word.starts_with('m'))
                .collect();
            std::thread::scope(|scope| {
                for machine in machines {
                    scope.spawn(move || println!("{machine}: {}", self.on(machine, commands)));
                }
            });
        }
    }

    /// Runs commands on a machine; what they print.
    fn on(&self, machine: &str, commands: &str) -> String {
        let said = self.attempt(machine, commands);
        said.unwrap_or_else(|said| panic!("on {machine}:\n{commands}\n{said}"))
    }

    fn attempt(&self, machine: &str, commands: &str) -> Result<String, String> {
        let home = self.home(machine);
        let place = |path: &str| home.join(path).display().to_string();
        let commands = commands
            .replace("/etc/skep", &place("etc"))
            .replace("/var/lib/skep", &place("data"));
        let commands = (1..10).fold(commands, |commands, number| {
            let address = format!("{}.{number}:7", self.network);
            commands.replace(&format!("m{number}:7"), &address)
        });
        let number = machine.trim_start_matches('m');
        let skep = skep_binary();
        let path = [
            self.dir.path().join("bin").as_path(),
            skep.parent().expect("it lies in a directory"),
            Path::new(&std::env::var("PATH").unwrap_or_default()),
        ]
        .map(|path| path.display().to_string())
        .join(":");
        let ran = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &commands])
            .env("MACHINE", &home)
            .env("PATH", path)
            .env("SKEP_AT", format!("{}.{number}:7401", self.network))
            .env("SKEP_LOG", "info")
            .stdin(Stdio::null())
            .output()
            .expect("a shell");
        let text = [&ran.stdout[..], &ran.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        match ran.status.success() {
            true => Ok(text),
            false => Err(text),
        }
    }

    /// `kill -9` of the node of a machine.
    fn kill(&self, machine: &str) {
        let pid = fs::read_to_string(self.home(machine).join("pid")).expect("it ran");
        let pid: libc::pid_t = pid.trim().parse().expect("a number");
        // SAFETY: plain numbers. It is the process that the script above started.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        while Path::new(&format!("/proc/{pid}/fd/0")).exists() {
            std::thread::yield_now();
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for number in 1..10 {
            if self.home(&format!("m{number}")).join("pid").exists() {
                self.kill(&format!("m{number}"));
            }
        }
    }
}

#[test]
fn the_procedures_of_the_handbook_work() {
    let machines = Machines::new(4);
    machines.run("The first cluster");
    machines.run("Is all well");
    machines.run("Add a node");
    machines.run("Take a node out");
    machines.run("Restart the nodes one after another");
    machines.run("The disk is full");

    machines.kill("m3");
    let found = machines
        .attempt("m1", "skep doctor")
        .expect_err("m3 is down");
    assert!(
        found.contains("problem: node 3: ") && found.contains("#a-node-is-down"),
        "{found}"
    );
    machines.run("A node is down");

    machines.kill("m3");
    machines.on("m3", "rm -r /var/lib/skep");
    machines.run("The disk is lost");
    let answer = machines.on("m3", "skep query kv 'get greeting'");
    assert!(answer.contains("hello"), "{answer}");
    machines.on(
        "m3",
        "until skep doctor --config /etc/skep/skep.toml | grep 'all is well'; do sleep 1; done",
    );
}

#[test]
fn the_handbook_explains_each_alert() {
    let alerts = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        assert!(HANDBOOK.contains(&format!("\n| {alert} | ")), "{alert}");
    }
}

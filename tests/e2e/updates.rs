//! `update-sets`: lists come from a real server by HTTP, and one that has not come whole and good changes nothing.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::proxies::nginx;
use crate::sock::{accept, listen};

/// A router with a set that is fetched from a server, and the files of both.
struct Updated {
    lab: Lab,
    daemon: Daemon,
    files: TempDir,
    _server: Process,
}

const LIST: &str = "# a country\n203.0.113.0/25\n203.0.113.200\n";

impl Updated {
    fn start(options: &str, kind: &str) -> Updated {
        let (lab, files) = (Lab::new(), TempDir::new());
        let root = files.path().display();
        let http = format!("server {{ listen 198.51.100.2:8000; root {root}/www; }}");
        let server = nginx(&lab, &files, Family::V4, 8000, &http);
        std::fs::create_dir(files.path().join("www")).expect("a folder");
        std::fs::create_dir(files.path().join("lists")).expect("a folder");
        let uci = Uci::new("direct").section(&format!(
            "config set 'cn'\n\toption url 'http://198.51.100.2:8000/cn.txt'\n\toption loadfile '{root}/lists/cn.list'\n\
             {options}\nconfig rule\n\tlist {kind} '@cn'\n\toption outbound 'direct'\n"
        ));
        let daemon = Daemon::start(&lab, &uci);
        Updated { lab, daemon, files, _server: server }
    }

    fn offer(&self, text: &str) {
        self.files.write("www/cn.txt", text);
    }

    fn list(&self) -> PathBuf {
        self.files.path().join("lists/cn.list")
    }

    /// Under busybox's shell, as on a router. True if it ended well, with what it said.
    fn update(&self, words: &[&str]) -> (bool, String) {
        let mut command = self.lab.router.command("busybox");
        command.arg("ash").arg(SCRIPT);
        self.finish(command, words)
    }

    fn finish(&self, mut command: Command, words: &[&str]) -> (bool, String) {
        command.env("TPROXYD", PROGRAM).env("TMPDIR", self.files.path());
        command.arg("--config").arg(self.daemon.config()).args(words);
        let Output { status, stdout, stderr } = command.output().expect("run update-sets");
        (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    }

    fn set(&self) -> Json {
        self.daemon.status().at("sets.0").clone()
    }

    /// An attempt fails, saying `word`, and the list and what the daemon knows stay.
    fn refuses(&self, word: &str) {
        let before = (std::fs::read(self.list()).expect("a list"), self.set().number("entries"));
        let (well, said) = self.update(&[]);
        assert!(!well && said.contains(word), "{word}: {said}");
        assert_eq!((std::fs::read(self.list()).expect("a list"), self.set().number("entries")), before, "{word}");
        assert!(self.set().text("update_error").contains(word), "{}", self.set());
        let left = std::fs::read_dir(self.files.path().join("lists")).expect("a folder").count();
        assert_eq!(left, 1, "{word}: nothing is left beside the list");
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/files/update-sets");

#[test]
fn a_list_is_fetched_checked_put_in_place_and_in_force() {
    let updated = Updated::start("", "dest_ip");
    updated.offer(LIST);
    let set = updated.set();
    assert_eq!((set.number("entries"), set.at("age_s"), set.at("update_time")), (0, &Json::Null, &Json::Null), "{set}");
    let (well, said) = updated.update(&["--due"]);
    assert!(well && said.contains("reloaded; changed: rules"), "{said}");
    let set = updated.set();
    assert_eq!((set.text("name"), set.text("type"), set.number("entries")), ("cn", "net", 2), "{set}");
    assert_eq!((set.text("file"), set.at("update_error")), (updated.list().to_str().expect("text"), &Json::Null));
    assert!(set.number("age_s") < 100 && set.number("update_time") > 1_700_000_000, "{set}");
    let (well, said) = updated.update(&["cn"]);
    assert!(well && said.contains("as before") && !said.contains("reloaded"), "{said}");
    updated.offer("203.0.113.7\n");
    let (well, said) = updated.update(&["--due"]);
    assert_eq!((well, said.as_str()), (true, ""), "it is not a day old");
    let (well, said) = updated.update(&[]);
    assert!(well && said.contains("reloaded"), "{said}");
    assert_eq!(updated.set().number("entries"), 1);
    let (well, said) = updated.update(&["us"]);
    assert!(!well && said.contains("us is no set with a url"), "{said}");
}

#[test]
fn what_is_not_a_whole_good_list_leaves_the_old_one_in_place() {
    let updated = Updated::start("", "dest_ip");
    let nets = |range: std::ops::Range<u8>| range.map(|n| format!("203.0.{n}.0/25\n")).collect::<String>();
    updated.offer(&nets(0..200));
    assert!(updated.update(&[]).0);
    std::fs::remove_file(updated.files.path().join("www/cn.txt")).expect("it was there");
    updated.refuses("404");
    for (text, word) in [
        ("<!DOCTYPE html>\n<html><body>Please log in</body></html>\n", "web page"),
        ("203.0.113.0/24\n\u{1}\u{2}garbage\n", "cn.list:2"),
        ("# moved\n", "no entry"),
        ("", "empty"),
        (&nets(0..99), "--force"),
    ] {
        updated.offer(text);
        updated.refuses(word);
    }
    assert!(updated.update(&["--force"]).0, "a short one that is meant to be");
}

#[test]
fn half_a_transfer_and_a_server_that_is_gone_leave_the_old_one_in_place() {
    let updated = Updated::start("", "dest_ip");
    updated.offer(LIST);
    assert!(updated.update(&[]).0);
    let text = std::fs::read_to_string(updated.daemon.config()).expect("a file");
    updated.daemon.write_config_text(&text.replace(":8000", ":8001"));
    let listener = listen(&updated.lab.server, Family::V4.proxy(), 8001);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = accept(&listener);
            let _ = client.read(&mut [0; 4096]).expect("a request");
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n203.0.113.0/25\n203.0").expect("send");
        });
        updated.refuses("");
    });
    drop(listener);
    updated.refuses("");
}

#[test]
fn a_full_disk_leaves_the_old_one_in_place() {
    let updated = Updated::start("", "dest_ip");
    updated.offer(LIST);
    assert!(updated.update(&[]).0);
    updated.offer(&(0..9000).map(|n| format!("10.{}.{}.0/25\n", n / 256, n % 256)).collect::<String>());
    let inside = "dir=$1; shift; old=$(mktemp); cp $dir/cn.list $old
        mount -t tmpfs -o size=64k none $dir && cp $old $dir/cn.list || exit 3
        if busybox ash \"$@\"; then exit 4; fi
        cmp $old $dir/cn.list && ls $dir; rm $old";
    let mut command = updated.lab.router.command("unshare");
    let lists: &Path = &updated.files.path().join("lists");
    command.args(["--mount", "sh", "-c", inside, "sh"]).arg(lists).arg(SCRIPT);
    let (well, said) = updated.finish(command, &[]);
    assert!(well && said.contains("No space left") && said.starts_with("cn.list\nset cn"), "{said}");
}

#[test]
fn names_are_fetched_too_and_bad_lines_skipped_where_that_is_wanted() {
    let updated = Updated::start("\toption type 'domain'\n\toption strict '0'\n", "domain");
    updated.offer("video.example\n||films.example^\nb\u{e4}d line\n");
    let (well, said) = updated.update(&[]);
    assert!(well, "{said}");
    assert_eq!((updated.set().text("type"), updated.set().number("entries")), ("domain", 2));
}

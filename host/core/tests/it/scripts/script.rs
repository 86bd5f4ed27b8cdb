//! The text of a script: blocks of commands and of what they print.

use std::fmt::Write;

/// One script.
pub struct Script {
    blocks: Vec<Block>,
    /// Comments after the last block.
    tail: Vec<String>,
}

struct Block {
    /// Everything before `----`, as written.
    head: Vec<String>,
    commands: Vec<(usize, String)>,
}

const SEPARATOR: &str = "----";

impl Script {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut blocks = Vec::new();
        let mut head = Vec::new();
        let mut commands = Vec::new();
        let mut lines = (1..).zip(text.lines());
        while let Some((number, line)) = lines.next() {
            if line == SEPARATOR {
                if commands.is_empty() {
                    return Err(format!("line {number}: there is no command above"));
                }
                blocks.push(Block {
                    head: std::mem::take(&mut head),
                    commands: std::mem::take(&mut commands),
                });
                // What is expected ends with a blank line.
                let _expected = lines
                    .by_ref()
                    .take_while(|(_, line)| !line.is_empty())
                    .count();
                continue;
            }
            if !line.starts_with('#') && !line.is_empty() {
                commands.push((number, line.to_owned()));
            }
            head.push(line.to_owned());
        }
        match commands.first() {
            Some((number, _)) => Err(format!(
                "line {number}: a command with no {SEPARATOR} below"
            )),
            None => Ok(Self { blocks, tail: head }),
        }
    }

    /// Runs every command; the script with what was printed in the place of what was expected.
    pub fn play(
        &self,
        mut command: impl FnMut(usize, &str) -> Result<Vec<String>, String>,
    ) -> Result<String, String> {
        let mut text = String::new();
        for (place, block) in self.blocks.iter().enumerate() {
            if place > 0 {
                text.push('\n');
            }
            for line in &block.head {
                text.push_str(line);
                text.push('\n');
            }
            text.push_str(SEPARATOR);
            text.push('\n');
            let mut silent = true;
            for (line, words) in &block.commands {
                for printed in command(*line, words)? {
                    silent = false;
                    text.push_str(&printed);
                    text.push('\n');
                }
            }
            if silent {
                text.push_str("ok\n");
            }
        }
        for (place, line) in self.tail.iter().enumerate() {
            if place == 0 {
                text.push('\n');
            }
            text.push_str(line);
            text.push('\n');
        }
        Ok(text)
    }
}

/// Lines that only `old` has after `-`, lines that only `new` has after `+`, with a few around them.
pub fn diff(old: &str, new: &str) -> String {
    const AROUND: usize = 3;
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    // Lengths of the longest common subsequences of the ends.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for (a, line) in old.iter().enumerate().rev() {
        for (b, other) in new.iter().enumerate().rev() {
            common[a][b] = if line == other {
                common[a + 1][b + 1] + 1
            } else {
                common[a + 1][b].max(common[a][b + 1])
            };
        }
    }
    let (mut a, mut b) = (0, 0);
    let mut lines = Vec::new();
    while a < old.len() || b < new.len() {
        if a < old.len() && b < new.len() && old[a] == new[b] {
            lines.push((' ', a, old[a]));
            (a, b) = (a + 1, b + 1);
        } else if a < old.len() && (b == new.len() || common[a + 1][b] >= common[a][b + 1]) {
            lines.push(('-', a, old[a]));
            a += 1;
        } else {
            lines.push(('+', a, new[b]));
            b += 1;
        }
    }
    let mut text = String::new();
    let mut last = 0;
    for (place, (mark, number, line)) in lines.iter().enumerate() {
        let near = lines[place.saturating_sub(AROUND)..lines.len().min(place + AROUND + 1)]
            .iter()
            .any(|(mark, _, _)| *mark != ' ');
        if near {
            if place > last {
                let _infallible = writeln!(text, "  line {}:", number + 1);
            }
            let _infallible = writeln!(text, "{mark} {line}");
            last = place + 1;
        }
    }
    text
}

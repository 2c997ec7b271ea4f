// Runs a ucode script of rpcd's under JavaScript. The languages are close: what differs and is used is translated here
// (imports, `for … in` over values, types, octal), and only the functions that such scripts need are there. It stands for
// the interpreter, not for rpcd; a script that uses more fails loudly.

import { chmodSync, closeSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';

function type(value) {
    if (value == null) return null;
    if (Array.isArray(value)) return 'array';
    if (typeof value === 'number') return Number.isInteger(value) ? 'int' : 'double';
    return { boolean: 'bool', string: 'string', function: 'function', object: 'object' }[typeof value];
}

const language = {
    type,
    length: (value) => (type(value) === 'object' ? Object.keys(value).length : value?.length) ?? null,
    join: (glue, list) => list.join(glue),
    map: (list, by) => list.map((value, place) => by(value, place)),
    filter: (list, by) => list.filter((value, place) => by(value, place)),
    push: (list, ...more) => list.push(...more),
    keys: Object.keys,
    replace: (text, pattern, by) => String(text).replace(pattern, by),
    match: (text, pattern) => String(text).match(pattern),
    split: (text, by) => String(text).split(by),
    trim: (text) => text.trim(),
    index: (list, value) => list.indexOf(value),
    substr: (text, from, length) => text.substring(from, length == null ? undefined : from + length),
    json: JSON.parse,
    exists: (table, key) => key in table,
    each: (value) => (Array.isArray(value) ? value : Object.keys(value ?? {})),
};

function files(run) {
    return {
        popen: (command) => {
            const done = run(command);
            return { read: () => done.stdout, close: () => done.status };
        },
        open: (path, mode, permissions) => {
            const file = openSync(path, mode, permissions);
            chmodSync(path, permissions);
            return { write: (text) => writeSync(file, text), close: () => closeSync(file) };
        },
        unlink: (path) => rmSync(path, { force: true }),
        readfile: (path) => readFileSync(path, 'utf8'),
    };
}

// What the script returns: its objects, with their methods. `run` runs a shell command to its end.
export function readUcode(path, run) {
    const available = { ...language, ...files(run) };
    const source = readFileSync(path, 'utf8')
        .replace(/^'use strict';$/m, '')
        .replace(/^import \{([^}]*)\} from 'fs';$/m, '')
        .replace(/for \(let (\w+) in ([^\n]*)\)$/gm, 'for (let $1 of each($2))')
        .replace(/\b0([0-7]{3})\b/g, '0o$1');
    return new Function(...Object.keys(available), source)(...Object.values(available));
}

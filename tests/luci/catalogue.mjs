// Catalogues of translations: which strings the pages have, and what a .po file says of them.

import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';

const unquote = (text) => JSON.parse(`"${text}"`);

// { message: translation } of a .po file.
export function readPo(text) {
    const found = {};
    for (const entry of text.split(/\n\s*\n/)) {
        const part = (name) => {
            const lines = new RegExp(`^${name} ((?:"(?:[^"\\\\]|\\\\.)*"\\s*)+)`, 'm').exec(entry)?.[1];
            return lines && [...lines.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, one]) => unquote(one)).join('');
        };
        const id = part('msgid');
        if (id) found[id] = part('msgstr') ?? '';
    }
    return found;
}

export function walk(folder) {
    return readdirSync(folder).sort().flatMap((name) => {
        const path = join(folder, name);
        return statSync(path).isDirectory() ? walk(path) : [path];
    });
}

// Every literal in `_()` of the pages, and the titles of the menu, with the files that have them.
export function strings(app) {
    const found = new Map();
    const add = (text, file) => found.set(text, [...new Set([...(found.get(text) ?? []), file.slice(app.length + 1)])]);
    for (const file of walk(join(app, 'htdocs'))) {
        for (const [, single, double] of readFileSync(file, 'utf8').matchAll(/\b_\(\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")/g))
            add(single != null ? single.replaceAll("\\'", "'") : unquote(double), file);
    }
    for (const folder of ['root/usr/share/luci/menu.d', 'root/usr/share/rpcd/acl.d']) {
        for (const file of walk(join(app, folder)))
            for (const [, text] of readFileSync(file, 'utf8').matchAll(/"(?:title|description)": "([^"]*)"/g)) add(text, file);
    }
    return found;
}

// One UCI file, as rpcd's `uci` object shows it: anonymous sections get names that last, changes wait for `commit`.

import { readFileSync, renameSync, writeFileSync } from 'node:fs';

const WORD = /'((?:[^']|'\\'')*)'|"([^"]*)"|(\S+)/g;

function words(line) {
    return [...line.matchAll(WORD)].map(([, single, double, bare]) => single?.replaceAll("'\\''", "'") ?? double ?? bare);
}

const quote = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

export class Uci {
    changed = false;
    #sections = [];
    #last = 0;

    constructor(config, file) {
        this.config = config;
        this.file = file;
        let section = null;
        for (const line of readFileSync(file, 'utf8').split('\n')) {
            if (/^\s*(#|$)/.test(line)) continue;
            const [verb, first, second] = words(line);
            if (verb === 'config') {
                section = this.#make(first, second);
                this.#sections.push(section);
            } else if (verb === 'option') section[first] = second;
            else if (verb === 'list') section[first] = [...(section[first] ?? []), second];
        }
    }

    #make(type, name) {
        const id = name ?? `cfg${String(++this.#last).padStart(2, '0')}${type.slice(0, 4)}`;
        return { '.name': id, '.type': type, '.anonymous': !name };
    }

    #find(name) {
        return this.#sections.find((section) => section['.name'] === name);
    }

    sections() {
        return this.#sections;
    }

    values() {
        return Object.fromEntries(this.#sections.map((section, index) => [section['.name'], { ...section, '.index': index }]));
    }

    add(type, name, values) {
        const section = this.#make(type, name);
        this.#sections.push(section);
        this.set(section['.name'], values ?? {});
        return section['.name'];
    }

    set(name, values) {
        this.changed = true;
        Object.assign(this.#find(name), values);
    }

    remove(name, options) {
        this.changed = true;
        if (options) for (const option of options) delete this.#find(name)[option];
        else this.#sections = this.#sections.filter((section) => section['.name'] !== name);
    }

    order(names) {
        this.changed = true;
        this.#sections.sort((a, b) => names.indexOf(a['.name']) - names.indexOf(b['.name']));
    }

    commit() {
        const text = this.#sections.map((section) => {
            const lines = [`config ${section['.type']}${section['.anonymous'] ? '' : ` ${quote(section['.name'])}`}`];
            for (const option in section) {
                if (option.startsWith('.')) continue;
                if (Array.isArray(section[option])) lines.push(...section[option].map((value) => `\tlist ${option} ${quote(value)}`));
                else lines.push(`\toption ${option} ${quote(section[option])}`);
            }
            return lines.join('\n');
        }).join('\n\n');
        writeFileSync(`${this.file}.new`, `${text}\n`);
        renameSync(`${this.file}.new`, this.file);
        this.changed = false;
    }
}

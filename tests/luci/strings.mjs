// Holds the catalogues to the pages: the template names every string of `_()` and no other, and Chinese lacks none, with
// the same %s and %d. `--write` renews the template and puts new strings, still empty, into the Chinese catalogue.

import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readPo, strings } from './catalogue.mjs';

const APP = join(dirname(fileURLToPath(import.meta.url)), '../../openwrt/luci-app-tproxyd');
const TEMPLATE = join(APP, 'po/templates/tproxyd.pot');
const CHINESE = join(APP, 'po/zh_Hans/tproxyd.po');
const HEADERS = {
    [TEMPLATE]: 'Content-Type: text/plain; charset=UTF-8\\n',
    [CHINESE]: 'Language: zh_Hans\\nContent-Type: text/plain; charset=UTF-8\\nContent-Transfer-Encoding: 8bit\\nPlural-Forms: nplurals=1; plural=0;\\n',
};

function render(file, used, translation) {
    const entries = [...used].map(([text, files]) =>
        `${files.map((one) => `#: ${one}`).join('\n')}\nmsgid ${JSON.stringify(text)}\nmsgstr ${JSON.stringify(translation[text] ?? '')}\n`);
    return `msgid ""\nmsgstr "${HEADERS[file]}"\n\n${entries.join('\n')}`;
}

const used = strings(APP);
if (process.argv[2] === '--write') {
    writeFileSync(TEMPLATE, render(TEMPLATE, used, {}));
    writeFileSync(CHINESE, render(CHINESE, used, readPo(readFileSync(CHINESE, 'utf8'))));
}

const faults = [];
const chinese = readPo(readFileSync(CHINESE, 'utf8'));
const places = (text) => (text.match(/%[sd%]/g) ?? []).join(' ');
if (readFileSync(TEMPLATE, 'utf8') !== render(TEMPLATE, used, {})) faults.push(`${TEMPLATE} is not what the pages have: node tests/luci/strings.mjs --write`);
for (const text of used.keys()) {
    if (!chinese[text]) faults.push(`no Chinese for: ${text}`);
    else if (places(chinese[text]) !== places(text)) faults.push(`other places for values: ${text} → ${chinese[text]}`);
}
for (const text in chinese) if (!used.has(text)) faults.push(`no page says any more: ${text}`);
for (const fault of faults) console.error(fault);
console.log(`${used.size} strings, ${faults.length} faults`);
process.exit(faults.length ? 1 : 0);

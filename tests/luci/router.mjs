// Stands for what of OpenWrt no registry has: rpcd's HTTP door, its access lists, uci, file.exec and procd's reload.
// What it calls is real: the daemon, its command line, and the package's own files/tproxyd.uc and acl.d. It says nothing
// of rpcd itself; that the pages work there was seen with the real one (README).
//
//   node router.mjs ADDRESS PORT CONFIG     TPROXYD names the program, PO the catalogue of ?lang=zh

import { createServer } from 'node:http';
import { randomBytes } from 'node:crypto';
import { spawn, spawnSync } from 'node:child_process';
import { appendFileSync, existsSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { readPo } from './catalogue.mjs';
import { readUcode } from './ucode.mjs';
import { Uci } from './uci.mjs';

const [, , ADDRESS, PORT, CONFIG] = process.argv;
const HERE = dirname(fileURLToPath(import.meta.url));
const TREE = join(HERE, '../..');
const APP = join(TREE, 'openwrt/luci-app-tproxyd');
const PROGRAM = process.env.TPROXYD;
const UPDATE_SETS = '/usr/libexec/tproxyd/update-sets';
const LOG = `${CONFIG}.log`;
const BOOT = `${CONFIG}.boot`;

const OK = 0, INVALID = 2, NO_METHOD = 3, NOT_FOUND = 4, DENIED = 6;

const acl = JSON.parse(readFileSync(join(APP, 'root/usr/share/rpcd/acl.d/luci-app-tproxyd.json')))['luci-app-tproxyd'];
const menu = JSON.parse(readFileSync(join(APP, 'root/usr/share/luci/menu.d/luci-app-tproxyd.json')));

// LuCI's own list grants these to everybody who may see a page.
const BASE = { read: { uci: ['get', 'changes'], session: ['access'] }, write: { uci: ['add', 'set', 'delete', 'order', 'apply', 'confirm'] } };

const sessions = new Map();
const uci = new Uci('tproxyd', CONFIG);
const extra = { hints: {}, leases: [] };
let daemon = null;

// ---- access: what acl.d says, as rpcd reads it

function grants(session) {
    return session?.user === 'root' ? ['read', 'write'] : session ? ['read'] : [];
}

function mayCall(session, object, method) {
    return grants(session).some((way) => (acl[way].ubus[object] ?? BASE[way][object] ?? []).includes(method));
}

function mayUse(session, scope, way) {
    return grants(session).includes(way) && acl[way].uci.includes(scope);
}

function mayExec(session, line) {
    return grants(session).some((way) => (acl[way].file[line] ?? []).includes('exec'));
}

// ---- procd: the daemon runs if it is enabled; a change is a reload

function isEnabled() {
    const globals = uci.sections().find((section) => section['.type'] === 'globals');
    return (globals?.enabled ?? '1') === '1';
}

// The words that follow the program; without a configuration named, that of this router.
function words(given) {
    return given.includes('--config') ? given : [...given, '--config', CONFIG];
}

function run(given) {
    return spawnSync(PROGRAM, words(given), { encoding: 'utf8', timeout: 60_000 });
}

// The page names the router's configuration, which lies elsewhere here.
function update() {
    return spawnSync('/bin/sh', [join(TREE, 'files/update-sets'), '--config', CONFIG], { encoding: 'utf8', timeout: 60_000, env: { ...process.env, TMPDIR: dirname(CONFIG) } });
}

async function follow() {
    if (!isEnabled()) {
        daemon?.kill('SIGTERM');
        await daemon?.gone;
    } else if (daemon) {
        appendFileSync(`${CONFIG}.reloads`, run(['reload']).stderr);
    } else if (run(['check', '--config-only']).status === 0) {
        const out = openSync(LOG, 'w');
        const child = spawn(PROGRAM, ['run', '--config', CONFIG], { stdio: ['ignore', out, out] });
        child.gone = new Promise((done) => child.on('exit', () => { daemon = null; done(); }));
        daemon = child;
        while (daemon && !readFileSync(LOG, 'utf8').includes(' ready: ')) await sleep(50);
    }
}

// ---- the objects

const script = readUcode(join(TREE, 'files/tproxyd.uc'), (command) =>
    spawnSync('/bin/sh', ['-c', command.replace("'/usr/sbin/tproxyd'", `'${CONFIG}.program'`)], { encoding: 'utf8', timeout: 60_000 }));

// As rpcd does: an argument that the method does not name, or of another type, is refused.
function callScript(method, args) {
    const found = script.tproxyd[method];
    if (!found) return [NO_METHOD];
    for (const name in args) if (typeof args[name] !== typeof found.args?.[name]) return [INVALID];
    return [OK, found.call({ args })];
}

const objects = {
    session: { access: (args, session) => ({ access: grants(session).some((way) => way === 'write' || args.function !== 'write') }) },
    uci: {
        get: () => ({ values: uci.values() }),
        add: ({ type, name, values }) => ({ section: uci.add(type, name, values) }),
        set: ({ section, values }) => uci.set(section, values),
        delete: ({ section, option, options }) => uci.remove(section, option ? [option] : options),
        order: ({ sections }) => uci.order(sections),
        changes: () => ({ changes: uci.changed ? { tproxyd: [['set']] } : {} }),
        apply: async () => { uci.commit(); await follow(); },
        confirm: () => {},
    },
    service: { list: () => ({ tproxyd: { instances: { instance1: { running: daemon != null } } } }) },
    'network.interface': {
        dump: () => ({ interface: [
            { interface: 'loopback', up: true, l3_device: 'lo', route: [] },
            { interface: 'lan', up: true, l3_device: 'lan0', route: [] },
            { interface: 'wan', up: true, l3_device: 'wan0', route: [{ target: '0.0.0.0', mask: 0 }] },
        ] }),
    },
    'luci-rpc': { getDHCPLeases: () => ({ dhcp_leases: extra.leases, dhcp6_leases: [] }), getHostHints: () => extra.hints },
    file: { exec: ({ command, params }) => exec(command, params ?? []) },
};

function exec(command, params) {
    if (command === '/etc/init.d/tproxyd') {
        if (params[0] === 'enable') writeFileSync(BOOT, '');
        if (params[0] === 'disable') rmSync(BOOT, { force: true });
        return { code: params[0] === 'enabled' && !existsSync(BOOT) ? 1 : 0 };
    }
    if (command === '/sbin/logread') return { code: 0, stdout: existsSync(LOG) ? readFileSync(LOG, 'utf8').slice(-20_000) : '' };
    const { status, stdout, stderr } = command === UPDATE_SETS ? update() : run(params);
    return { code: status, stdout, stderr };
}

async function call(session, object, method, args) {
    if (object === 'file' && method === 'exec') {
        if (!mayExec(session, [args.command, ...(args.params ?? [])].join(' '))) return [DENIED];
    } else if (!mayCall(session, object, method)) {
        return 'Access denied';
    }
    if (object === 'uci' && args.config && !mayUse(session, args.config, method === 'get' ? 'read' : 'write')) return [DENIED];
    if (object === 'tproxyd') return callScript(method, args);
    const found = objects[object]?.[method];
    return found ? [OK, (await found(args, session)) ?? {}] : [NOT_FOUND];
}

async function answer(request) {
    const [id, object, method, args] = request.params;
    const result = await call(sessions.get(id), object, method, args ?? {});
    const base = { jsonrpc: '2.0', id: request.id };
    return typeof result === 'string' ? { ...base, error: { code: -32002, message: result } } : { ...base, result };
}

// ---- the pages

const TYPES = { js: 'text/javascript', css: 'text/css', json: 'application/json' };

function login() {
    return `<!DOCTYPE html><html lang="en"><title>Login</title><form method="post"><input id="luci_username" name="luci_username">
        <input id="luci_password" name="luci_password" type="password"><button>Log in</button></form></html>`;
}

function page(url, id, session) {
    const path = url.pathname.replace(/^\/cgi-bin\/luci\//, '');
    const entry = menu[path];
    if (entry?.action.type !== 'view') return null;
    const lang = url.searchParams.get('lang') ?? 'en';
    const catalogue = lang === 'zh' ? readPo(readFileSync(process.env.PO ?? join(APP, 'po/zh_Hans/tproxyd.po'), 'utf8')) : {};
    const tabs = Object.entries(menu).filter(([, one]) => one.action.type === 'view')
        .map(([to, one]) => `<li${to === path ? ' class="active"' : ''}><a href="/cgi-bin/luci/${to}${url.search}">${catalogue[one.title] ?? one.title}</a></li>`);
    const env = { session: id, view: entry.action.path, catalogue, mayWrite: grants(session).includes('write') };
    return `<!DOCTYPE html><html lang="${lang}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
        <title>tproxyd</title><link rel="stylesheet" href="/standin.css"></head><body><nav><ul class="tabs">${tabs.join('')}</ul></nav>
        <main id="view"></main><div id="modal_overlay"></div><script>window.STANDIN = ${JSON.stringify(env).replace(/</g, '\\u003c')};</script>
        <script src="/standin.js"></script></body></html>`;
}

function cookie(request) {
    return /sysauth=(\w+)/.exec(request.headers.cookie ?? '')?.[1];
}

function body(request) {
    return new Promise((done) => {
        let text = '';
        request.on('data', (chunk) => { text += chunk; });
        request.on('end', () => done(text));
    });
}

async function serve(request) {
    const url = new URL(request.url, 'http://router');
    if (url.pathname === '/ubus/') {
        const asked = JSON.parse(await body(request));
        return { type: 'json', body: JSON.stringify(Array.isArray(asked) ? await Promise.all(asked.map(answer)) : await answer(asked)) };
    }
    // What a test needs to know or arrange, beside the browser.
    if (url.pathname === '/test/extra') {
        Object.assign(extra, JSON.parse(await body(request)));
        return { body: '' };
    }
    if (/^\/standin\.(js|css)$/.test(url.pathname)) return { type: url.pathname.split('.')[1], body: readFileSync(join(HERE, url.pathname)) };
    if (url.pathname.startsWith('/luci-static/')) {
        const file = join(APP, 'htdocs', normalize(url.pathname));
        return existsSync(file) && statSync(file).isFile() ? { type: 'js', body: readFileSync(file) } : { status: 404, body: '' };
    }
    if (request.method === 'POST') {
        const id = randomBytes(16).toString('hex');
        sessions.set(id, { user: new URLSearchParams(await body(request)).get('luci_username') });
        return { status: 302, headers: { location: request.url, 'set-cookie': `sysauth=${id}; Path=/` }, body: '' };
    }
    const session = sessions.get(cookie(request));
    const text = session ? page(url, cookie(request), session) : login();
    return text ? { type: 'html', body: text } : { status: 404, body: 'no such page' };
}

writeFileSync(`${CONFIG}.program`, `#!/bin/sh
case " $* " in *" --config "*) exec '${PROGRAM}' "$@" ;; *) exec '${PROGRAM}' "$@" --config '${CONFIG}' ;; esac
`, { mode: 0o755 });
process.on('SIGTERM', async () => {
    daemon?.kill('SIGTERM');
    await daemon?.gone;
    process.exit(0);
});
await follow();
createServer((request, response) => {
    serve(request).catch((error) => ({ status: 500, body: String(error.stack) })).then(({ status, type, headers, body: content }) => {
        response.writeHead(status ?? 200, { 'content-type': `${TYPES[type] ?? 'text/html'}; charset=utf-8`, 'cache-control': 'no-store', ...headers });
        response.end(content);
    });
}).listen(+PORT, ADDRESS, () => console.log('ready'));

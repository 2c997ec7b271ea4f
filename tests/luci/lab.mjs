// The laboratory of the pages: a router that serves them, a server, and a browser that logs in. Used inside the namespaces
// of `ci/luci`. ROUTER names another program than router.mjs that serves the pages.

import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { sleep } from './browser.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const FOLDER = '/run/luci';

export const CONFIG = `${FOLDER}/tproxyd`;
export const SITE = 'http://192.168.1.1';

const inNamespace = (name, ...command) => ['nsenter', [`--net=/run/netns/${name}`, ...command]];

// ---- the router

let router = null;

export async function begin(config) {
    rmSync(FOLDER, { recursive: true, force: true });
    mkdirSync(FOLDER, { recursive: true });
    writeFileSync(CONFIG, config);
    const [program, words] = inNamespace('router', ...(process.env.ROUTER ?? `node ${join(HERE, 'router.mjs')}`).split(' '), '192.168.1.1', '80', CONFIG);
    router = spawn(program, words, { stdio: ['ignore', 'pipe', 'inherit'] });
    await new Promise((done, fail) => {
        router.stdout.on('data', (text) => String(text).includes('ready') && done());
        router.on('exit', (code) => fail(new Error(`the router ended (${code})`)));
    });
}

export async function end() {
    const gone = new Promise((done) => router.on('exit', done));
    router.kill('SIGTERM');
    const timer = setTimeout(() => router.kill('SIGKILL'), 20_000);
    await gone;
    clearTimeout(timer);
}

export function tproxyd(...words) {
    const [program, all] = inNamespace('router', process.env.TPROXYD, ...words, '--config', CONFIG);
    return spawnSync(program, all, { encoding: 'utf8' }).stdout;
}

export function status() {
    const text = tproxyd('status', '--json');
    return text ? JSON.parse(text) : null;
}

export async function until(ask, what) {
    for (const end = Date.now() + 60_000; Date.now() < end; await sleep(100)) {
        const found = await ask();
        if (found) return found;
    }
    throw new Error(`waited in vain for ${what}`);
}

// ---- the client

export function serve() {
    const source = `require('http').createServer((request, response) => request.url === '/hold' ? response.write('…')
        : response.end(request.url === '/blob' ? Buffer.alloc(400_000) : request.url === '/country' ? '203.0.113.200/29\\n192.0.2.0/24\\n' : 'hello ' + request.socket.remoteAddress)).listen(80, () => console.log('ready'))`;
    const [program, words] = inNamespace('server', 'node', '-e', source);
    const server = spawn(program, words, { stdio: ['ignore', 'pipe', 'inherit'] });
    return new Promise((done) => server.stdout.once('data', () => done(server)));
}

// By a request of its own, since fetch() takes no other Host than the address.
export function get(address, path = '/', host = address) {
    return new Promise((done, fail) => {
        const asked = request({ host: address, path, headers: { host, connection: 'close' }, agent: false, timeout: 20_000 }, (answer) => {
            let text = '';
            answer.setEncoding('utf8').on('data', (piece) => { text += piece; }).on('end', () => done(text)).on('error', fail);
        });
        asked.on('timeout', () => asked.destroy(new Error(`${host} did not answer`))).on('error', fail).end();
    });
}

export function macOf(device) {
    return JSON.parse(spawnSync('ip', ['-json', 'link', 'show', device], { encoding: 'utf8' }).stdout)[0].address;
}

// Has the router's DHCP server know a device; another ROUTER has its own ways.
export async function lease(one) {
    await fetch(`${SITE}/test/extra`, { method: 'POST', body: JSON.stringify({ leases: [one] }) });
}

// Connections that stay open.
export function hold(count) {
    return Promise.all(Array.from({ length: count }, () => new Promise((done, fail) => {
        const socket = connect(80, '203.0.113.10', () => socket.write('GET /hold HTTP/1.1\r\nHost: held.example\r\n\r\n'));
        socket.once('data', () => done(socket));
        socket.once('error', fail);
    })));
}

// ---- the browser

const address = (name, query = '') => `${SITE}/cgi-bin/luci/admin/services/tproxyd/${name}${query}`;

export async function visit(browser, name, user = 'root', query = '') {
    const page = await browser.page();
    await page.send('Network.clearBrowserCookies');
    await page.size(1200, 900);
    await page.open(address(name, query));
    await page.until(`document.querySelector('#luci_password')`, 'the login');
    await page.type('#luci_username', user);
    await page.type('#luci_password', 'x');
    await page.key('Enter');
    await page.until(`!document.querySelector('#luci_password') && document.querySelector('#view h2')`, `page ${name}`);
    return page;
}

// Another page of the same session.
export async function go(page, name, query = '') {
    page.requests.length = 0;
    await page.open(address(name, query));
    await page.until(`document.querySelector('#view h2')`, `page ${name}`);
}

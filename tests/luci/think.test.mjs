// What the pages think without a router (model.js), and what stands for OpenWrt in `drive`.

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { readUcode } from './ucode.mjs';
import { Uci } from './uci.mjs';

const TREE = join(dirname(fileURLToPath(import.meta.url)), '../..');
const APP = join(TREE, 'openwrt/luci-app-tproxyd');

String.prototype.format = function(...values) {
    let place = 0;
    return this.replace(/%[sd]/g, () => values[place++]);
};
const source = readFileSync(join(APP, 'htdocs/luci-static/resources/tproxyd/model.js'), 'utf8');
const model = new Function('baseclass', '_', source)({ extend: (members) => members }, (text) => text);

const base64 = (text) => Buffer.from(text).toString('base64');

test('links of every form become outbounds', () => {
    const plain = { type: 'socks5', server: 'proxy.example', port: '1080' };
    assert.deepEqual(model.parseLink('socks5://proxy.example:1080'), plain);
    assert.deepEqual(model.parseLink(' SOCKS5H://proxy.example:1080/ '), plain);
    assert.deepEqual(model.parseLink('socks5://me:a%3Ab@[2001:db8::1]:1080#At%20home'),
        { type: 'socks5', server: '2001:db8::1', port: '1080', username: 'me', password: 'a:b', label: 'At home' });
    assert.deepEqual(model.parseLink(`socks://${base64('me:secret')}@proxy.example:1080`), { ...plain, username: 'me', password: 'secret' });
    assert.equal(model.parseLink('http://proxy.example:3128').type, 'http');
    const shadowsocks = { type: 'shadowsocks', server: '192.0.2.1', port: '8388', method: 'aes-256-gcm', password: 'p:a/ss' };
    // SIP002, with and without padding, and the old form, all of it in base64.
    assert.deepEqual(model.parseLink(`ss://${base64('aes-256-gcm:p:a/ss')}@192.0.2.1:8388`), shadowsocks);
    assert.deepEqual(model.parseLink(`ss://${base64('aes-256-gcm:p:a/ss').replace(/=+$/, '')}@192.0.2.1:8388/?x=y`), shadowsocks);
    assert.deepEqual(model.parseLink(`ss://${base64('aes-256-gcm:p:a/ss@192.0.2.1:8388')}#Home`), { ...shadowsocks, label: 'Home' });
    // 2022: the userinfo is percent-encoded, not base64.
    assert.equal(model.parseLink('ss://2022-blake3-aes-128-gcm:AAAA%2BAAA%3D@192.0.2.1:8388').password, 'AAAA+AAA=');
});

test('a link that says too little is refused with a reason', () => {
    for (const link of ['', 'nonsense', 'ftp://a:1', 'socks5://proxy.example', 'socks5://proxy.example:0', 'socks5://proxy.example:70000',
        'socks5://:1080', 'ss://192.0.2.1:8388', `ss://${base64('aes-256-gcm:x')}@192.0.2.1:8388?plugin=obfs`, 'socks5://[2001:db8::1:1080'])
        assert.ok(model.parseLink(link).error, link);
});

test('sections are written as uci export writes them, and a message finds its field', () => {
    const { text, places } = model.exportText([
        { '.name': 'globals', '.type': 'globals', '.anonymous': false, enabled: '1' },
        { '.name': 'cfg01', '.type': 'rule', '.anonymous': true, name: "it's", dest_ip: ['192.0.2.1', '192.0.2.2'], outbound: 'nope', src_ip: '' },
    ]);
    assert.equal(text, "package tproxyd\n\nconfig globals 'globals'\n\toption enabled '1'\n\nconfig rule\n\toption name 'it'\\''s'\n" +
        "\tlist dest_ip '192.0.2.1'\n\tlist dest_ip '192.0.2.2'\n\toption outbound 'nope'\n\n");
    assert.deepEqual(model.complaints('/var/run/tproxyd.candidate:10: no such outbound\n/etc/list.txt:3: bad', places), [
        { section: 'cfg01', type: 'rule', option: 'outbound', text: 'no such outbound' }, { text: '/etc/list.txt:3: bad' }]);
});

function hidden(...rules) {
    return model.hiddenRules(rules.map((rule, number) => ({ '.name': `r${number}`, ...rule })));
}

test('a rule below one that takes all of it can never match', () => {
    assert.deepEqual(hidden({ dest_ip: ['10.0.0.0/8'] }, { dest_ip: ['10.1.2.0/24', '10.5.0.1'] }), { r1: 'r0' });
    assert.deepEqual(hidden({}, { domain: ['example.com'] }), { r1: 'r0' });
    assert.deepEqual(hidden({ domain: ['example.com'] }, { domain: ['=www.example.com'], proto: 'tcp' }), { r1: 'r0' });
    assert.deepEqual(hidden({ dest_port: ['1-1023'] }, { dest_port: ['443', '80:81'] }), { r1: 'r0' });
    assert.deepEqual(hidden({ dest_ip: ['2001:db8::/32'] }, { dest_ip: ['2001:db8:1::1'] }), { r1: 'r0' });
    assert.deepEqual(hidden({ dest_ip: ['10.0.0.0-10.0.0.9'] }, { dest_ip: ['10.0.0.8/31'] }), { r1: 'r0' });
    assert.deepEqual(hidden({ proto: 'tcpudp' }, { dest_ip: '@x' }), { r1: 'r0' });
    assert.deepEqual(hidden({ device: ['br-*'] }, { device: ['br-lan'] }), { r1: 'r0' });
});

test('a rule of which something is left is not called hidden', () => {
    assert.deepEqual(hidden({ dest_ip: ['10.1.0.0/16'] }, { dest_ip: ['10.0.0.0/8'] }), {});
    assert.deepEqual(hidden({ proto: 'tcp' }, { dest_ip: ['10.0.0.0/8'] }), {});
    assert.deepEqual(hidden({ enabled: '0' }, {}), {});
    assert.deepEqual(hidden({ dest_ip: ['!10.0.0.0/8'] }, { dest_ip: ['192.0.2.1'] }), {});
    assert.deepEqual(hidden({ domain: ['=example.com'] }, { domain: ['example.com'] }), {});
    assert.deepEqual(hidden({ domain: ['example.com'] }, { domain: ['badexample.com'] }), {});
    assert.deepEqual(hidden({ start_time: '21:00' }, { dest_ip: ['10.0.0.0/8'] }), {});
    assert.deepEqual(hidden({ dest_ip: ['0.0.0.0/0'] }, { dest_ip: ['::/0'] }), {});
    assert.deepEqual(hidden({ dest_ip: ['10.0.0.0/8'] }, { dest_ip: ['10.0.0.1', '@set'] }), {});
});

test('who uses an outbound or a set is found', () => {
    const sections = [
        { '.name': 'globals', '.type': 'globals', default: 'hk' },
        { '.name': 'all', '.type': 'outbound', type: 'group', member: ['hk', 'jp'] },
        { '.name': 'r', '.type': 'rule', outbound: 'hk', dest_ip: ['! @work'] },
        { '.name': 's', '.type': 'rule', outbound: 'jp', quota_outbound: 'direct', dest_ip: '@home 192.0.2.1' },
    ];
    assert.deepEqual(model.usesOf(sections, 'hk').map((use) => [use.section, use.option]), [['globals', 'default'], ['all', 'member'], ['r', 'outbound']]);
    assert.deepEqual(model.usesOfSet(sections, 'work').map((section) => section['.name']), ['r']);
    assert.deepEqual(model.usesOfSet(sections, 'home').map((section) => section['.name']), ['s']);
});

test('a value that anyone sees to be wrong is marked', () => {
    for (const [kind, good, bad] of [
        ['address', ['192.0.2.1', '10.0.0.0/8', '10.0.0.1-10.0.0.9', '2001:db8::/32', '::ffff:192.0.2.1', '@set'], ['256.0.0.1', '10.0.0.0/33', 'example.com', '2001:db8::1::2', '1.2.3']],
        ['ports', ['443', '1-1023', '80:81'], ['0x50', '70000', '1-']],
        ['mac', ['02:00:5e:10:00:01'], ['02:00:5e:10:00', 'nonsense']],
        ['domain', ['example.com', '=example.com', '@set', '例子.中国'], ['http://example.com', 'a b@c']],
        ['clock', ['21:30', '06:00'], ['24:00', '9']],
        ['duration', ['30', '300ms', '2h'], ['2 weeks', 'h']],
    ]) {
        for (const value of good) assert.equal(model.looksLike(kind, value), true, `${kind} ${value}`);
        for (const value of bad) assert.notEqual(model.looksLike(kind, value), true, `${kind} ${value}`);
    }
    assert.equal(model.looksLike('address', '!10.0.0.0/8', true), true);
    assert.notEqual(model.looksLike('address', '!10.0.0.0/8'), true);
});

test('the names of new sections are free, and libuci takes them', () => {
    assert.equal(model.freeName('At home: №1', []), 'at_home_1');
    assert.equal(model.freeName('香港', ['server']), 'server_2');
});

test('what only reads and what changes are apart in the access list', () => {
    const { read, write } = JSON.parse(readFileSync(join(APP, 'root/usr/share/rpcd/acl.d/luci-app-tproxyd.json'), 'utf8'))['luci-app-tproxyd'];
    assert.deepEqual(read.ubus.tproxyd, ['clients', 'explain', 'sessions', 'status']);
    assert.deepEqual(write.ubus.tproxyd, ['kick', 'reload', 'validate']);
    // No command but these, word for word; above all no pattern.
    for (const line of [...Object.keys(read.file), ...Object.keys(write.file)]) assert.match(line, /^\/[\w/.-]+( [\w/.-]+)+$/);
});

test('each method of the access list is one of the package’s object', () => {
    const { read, write } = JSON.parse(readFileSync(join(APP, 'root/usr/share/rpcd/acl.d/luci-app-tproxyd.json'), 'utf8'))['luci-app-tproxyd'];
    const { tproxyd } = readUcode(join(TREE, 'files/tproxyd.uc'), () => ({ stdout: '[]', status: 0 }));
    for (const method of [...read.ubus.tproxyd, ...write.ubus.tproxyd]) assert.equal(typeof tproxyd[method]?.call, 'function', method);
});

test('words from a browser reach the shell quoted', () => {
    const commands = [];
    const { tproxyd } = readUcode(join(TREE, 'files/tproxyd.uc'), (command) => {
        commands.push(command);
        return { stdout: '[]', status: 0 };
    });
    tproxyd.sessions.call({ args: { client: "x'; reboot; '" } });
    assert.ok(commands[0].includes(`'x'\\''; reboot; '\\'''`), commands[0]);
});

test('the stand-in of uci keeps what it reads', () => {
    const folder = mkdtempSync(join(tmpdir(), 'uci-'));
    const file = join(folder, 'tproxyd');
    writeFileSync(file, "config globals 'globals'\n\toption enabled '1'\n\nconfig rule\n\toption name 'it'\\''s'\n\tlist dest_ip 'a'\n\tlist dest_ip 'b'\n");
    const before = readFileSync(file, 'utf8');
    new Uci('tproxyd', file).commit();
    assert.equal(readFileSync(file, 'utf8'), before);
    rmSync(folder, { recursive: true });
});

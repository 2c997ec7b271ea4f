/*
 * Stands for what the pages use of LuCI's own JavaScript (baseclass, view, form, ui, uci, rpc, fs, poll), so that they can
 * be driven where LuCI cannot be had. Own work, and no more than they use: names and behaviour as LuCI's documentation
 * says, element ids and classes as its pages have, no looks. What only the real thing shows was looked at there.
 */
'use strict';

const env = window.STANDIN;

String.prototype.format = function(...values) {
    let place = 0;
    return this.replace(/%(%|[sdh])/g, (all, kind) => (kind === '%' ? '%' : kind === 'd' ? Math.floor(values[place++]) : values[place++]));
};

const _ = (text) => env.catalogue[text] || text;
const N_ = (count, one, many) => _(count === 1 ? one : many);

// As LuCI's: a bare string is HTML, a list holds nodes and text.
function append(node, content) {
    if (Array.isArray(content)) for (const one of content) node.append(one instanceof Node ? one : document.createTextNode(one ?? ''));
    else if (content instanceof Node) node.append(content);
    else if (content != null) node.innerHTML = content;
}

function E(tag, attributes, content) {
    if (Array.isArray(tag)) [tag, attributes, content] = [document.createDocumentFragment(), {}, tag];
    const node = tag instanceof Node ? tag : document.createElement(tag);
    for (const name in attributes) {
        if (attributes[name] == null) continue;
        if (typeof attributes[name] === 'function') node.addEventListener(name, attributes[name]);
        else node.setAttribute(name, attributes[name]);
    }
    append(node, content);
    return node;
}

class Base {
    constructor(...args) {
        this.__init__?.(...args);
    }

    static extend(members) {
        const made = class extends this {};
        Object.assign(made.prototype, members);
        return made;
    }
}

const L = {
    hasViewPermission: () => env.mayWrite,
    resolveDefault: (promise, value) => Promise.resolve(promise).catch(() => value),
};

// ---- rpc, fs, uci

const CODES = { 2: 'Invalid argument', 3: 'Method not found', 4: 'Resource not found', 6: 'Permission denied' };

let ids = 0;
async function ubus(object, method, args) {
    const request = { jsonrpc: '2.0', id: ++ids, method: 'call', params: [env.session, object, method, args] };
    const { result, error } = await (await fetch('/ubus/', { method: 'POST', body: JSON.stringify(request) })).json();
    if (error) throw new Error(`RPC call to ${object}/${method} failed: ${error.message}`);
    return result;
}

const rpc = {
    declare: ({ object, method, params = [], expect = {} }) => async (...args) => {
        const named = Object.fromEntries(params.map((name, place) => [name, args[place]]));
        const [code, answer] = await ubus(object, method, named);
        const [key] = Object.keys(expect);
        if (code !== 0) return key != null ? expect[key] : code;
        return key ? answer[key] ?? expect[key] : answer;
    },
};

const fs = {
    exec: async (command, params) => {
        const [code, answer] = await ubus('file', 'exec', { command, params });
        if (code !== 0) throw new Error(CODES[code]);
        return answer;
    },
};

const uci = {
    state: new Map(), gone: [], moved: false, last: 0,

    async load() {
        if (!uci.state.size) {
            const [, { values }] = await ubus('uci', 'get', { config: 'tproxyd' });
            for (const section of Object.values(values).sort((a, b) => a['.index'] - b['.index'])) uci.state.set(section['.name'], { now: section, saved: { ...section } });
        }
        return ['tproxyd'];
    },
    sections: (config, type) => [...uci.state.values()].map((one) => one.now).filter((section) => !type || section['.type'] === type),
    get: (config, sid, option) => (option ? uci.state.get(sid)?.now[option] : uci.state.get(sid)?.now),
    set(config, sid, option, value) {
        uci.state.get(sid).now[option] = value;
    },
    unset(config, sid, option) {
        delete uci.state.get(sid).now[option];
    },
    add(config, type, name) {
        const sid = name ?? `new${++uci.last}`;
        uci.state.set(sid, { now: { '.name': sid, '.type': type, '.anonymous': !name, '.create': true }, saved: null });
        return sid;
    },
    remove(config, sid) {
        if (uci.state.get(sid).saved) uci.gone.push(sid);
        uci.state.delete(sid);
    },
    move(config, sid, to, after) {
        const all = [...uci.state];
        const [one] = all.splice(all.findIndex(([name]) => name === sid), 1);
        all.splice(all.findIndex(([name]) => name === to) + (after ? 1 : 0), 0, one);
        uci.state = new Map(all);
        uci.moved = true;
    },
    async save() {
        const call = (method, args) => ubus('uci', method, { config: 'tproxyd', ...args });
        for (const section of uci.gone.splice(0)) await call('delete', { section });
        const renamed = [];
        for (const { now, saved } of uci.state.values()) {
            const values = Object.fromEntries(Object.entries(now).filter(([name, value]) => !name.startsWith('.') && String(value) !== String(saved?.[name])));
            const removed = Object.keys(saved ?? {}).filter((name) => !name.startsWith('.') && now[name] == null);
            if (!saved) {
                const [, { section }] = await call('add', { type: now['.type'], name: now['.anonymous'] ? undefined : now['.name'], values });
                renamed.push([now['.name'], section]);
            } else {
                if (removed.length) await call('delete', { section: now['.name'], options: removed });
                if (Object.keys(values).length) await call('set', { section: now['.name'], values });
            }
        }
        const names = Object.fromEntries(renamed);
        const order = [...uci.state.keys()].map((name) => names[name] ?? name);
        if (uci.moved) await call('order', { sections: order });
        uci.moved = false;
        uci.state.clear();
        await uci.load();
    },
};

// ---- poll, ui

const polls = [];
const poll = {
    add(ask, seconds) {
        const entry = { ask, seconds, free: true };
        polls.push(entry);
        setInterval(() => {
            if (!entry.free) return;
            entry.free = false;
            Promise.resolve(ask()).finally(() => { entry.free = true; });
        }, seconds * 1000);
    },
};

const overlay = () => document.getElementById('modal_overlay');

const ui = {
    // Disabled while its work runs, so that it is done once.
    createHandlerFn: (context, act, ...args) => (ev) => {
        const button = ev.currentTarget;
        const work = typeof act === 'string' ? context[act](...args, ev) : act.call(context, ...args, ev);
        button.disabled = true;
        Promise.resolve(work).catch((error) => ui.addNotification(null, E('p', {}, [error.message]), 'danger')).finally(() => { button.disabled = false; });
    },
    showModal(title, content) {
        overlay().replaceChildren(E('div', { 'class': 'modal cbi-modal', 'role': 'dialog', 'aria-modal': 'true' }, [E('h4', {}, [title]), ...[].concat(content)]));
        document.body.classList.add('modal-overlay-active');
    },
    hideModal() {
        document.body.classList.remove('modal-overlay-active');
        overlay().replaceChildren();
    },
    addNotification(title, content, kind) {
        document.getElementById('view').before(E('div', { 'class': `alert-message ${kind ?? ''}`, 'role': 'alert' }, [].concat(content)));
    },
    changes: {
        async apply() {
            ui.showModal(_('Applying configuration changes…'), []);
            await ubus('uci', 'apply', { timeout: 90, rollback: true });
            await ubus('uci', 'confirm', {});
            window.location.reload();
        },
    },
};

// ---- form

const KINDS = {
    port: (text) => /^\d+$/.test(text) && +text >= 1 && +text <= 65535,
    host: (text) => /^[A-Za-z0-9._:-]+$/.test(text),
};

const idOf = (option, sid) => `cbid.tproxyd.${sid}.${option.option}`;

const AbstractValue = Base.extend({
    __init__(map, section, option, title, description) {
        Object.assign(this, { map, section, option, title, description, rmempty: true, keylist: [], vallist: [], deps: [], widgets: {} });
    },
    value(key, words) {
        this.keylist.push(key);
        this.vallist.push(words ?? key);
    },
    depends(option, value) {
        this.deps.push(typeof option === 'object' ? option : { [option]: value });
    },
    cfgvalue(sid) {
        return uci.get('tproxyd', sid, this.option);
    },
    getUIElement(sid) {
        return this.widgets[sid]?.node.isConnected ? this.widgets[sid] : null;
    },
    formvalue(sid) {
        return this.getUIElement(sid)?.getValue() ?? null;
    },
    isActive(sid) {
        return !this.deps.length || this.deps.some((one) => Object.entries(one).every(([name, value]) => {
            const other = this.section.children.find((option) => option.option === name);
            return (other.formvalue(sid) ?? other.cfgvalue(sid) ?? other.default) === value;
        }));
    },
    validate: () => true,
    // True, or what is wrong.
    judged(sid) {
        const value = this.formvalue(sid);
        if (value == null || value === '') return this.rmempty !== false || _('Required');
        for (const one of [].concat(value)) {
            if (KINDS[this.datatype]?.(one) === false) return _('Invalid value');
            const said = this.validate(sid, one);
            if (said !== true) return said;
        }
        return true;
    },
    parse(sid) {
        if (!this.getUIElement(sid)) return;
        if (!this.isActive(sid)) return void uci.unset('tproxyd', sid, this.option);
        const said = this.judged(sid);
        if (said !== true) throw new Error(`“${this.title}”: ${said}`);
        const value = this.formvalue(sid);
        const empty = value == null || value === '' || (Array.isArray(value) && !value.length) || (this.isFlag && value === this.default);
        if (empty) uci.unset('tproxyd', sid, this.option);
        else this.write(sid, value);
    },
    write(sid, value) {
        uci.set('tproxyd', sid, this.option, value);
    },
    renderField(sid) {
        const node = E('div', { 'class': 'cbi-value-field' }, [this.renderWidget(sid, this.cfgvalue(sid) ?? this.default)]);
        const fault = E('div', { 'class': 'cbi-value-error', 'role': 'alert' }, ['']);
        node.append(fault);
        const look = () => {
            const said = this.judged(sid);
            fault.replaceChildren(said === true ? '' : said);
            this.section.showActive(sid);
            node.dispatchEvent(new CustomEvent('widget-change', { bubbles: true }));
        };
        node.addEventListener('change', look);
        node.addEventListener('input', look);
        return node;
    },
    keep(sid, node, getValue) {
        this.widgets[sid] = { node, getValue };
        return node;
    },
});

const Value = AbstractValue.extend({
    renderWidget(sid, value) {
        const node = E('input', { 'type': this.password ? 'password' : 'text', 'id': `widget.${idOf(this, sid)}`, 'value': value, 'placeholder': this.placeholder });
        return this.keep(sid, node, () => node.value);
    },
});

const Flag = AbstractValue.extend({
    isFlag: true,
    default: '0',
    renderWidget(sid, value) {
        const node = E('input', { 'type': 'checkbox', 'id': `widget.${idOf(this, sid)}`, 'checked': value === '1' ? '' : null, 'aria-label': this.title });
        return this.keep(sid, node, () => (node.checked ? '1' : '0'));
    },
});

const ListValue = AbstractValue.extend({
    renderWidget(sid, value) {
        const node = E('select', { 'id': `widget.${idOf(this, sid)}` }, this.keylist.map((key, place) =>
            E('option', { 'value': key, 'selected': key === value ? '' : null }, [this.vallist[place]])));
        return this.keep(sid, node, () => node.value);
    },
});

const DynamicList = AbstractValue.extend({
    renderWidget(sid, value) {
        const node = E('div', { 'class': 'cbi-dynlist', 'id': idOf(this, sid) });
        const input = E('input', { 'type': 'text', 'aria-label': this.title });
        const add = (text) => {
            const item = E('div', { 'class': 'item', 'tabindex': 0, 'data-value': text, 'click': () => { item.remove(); tell(); } }, [E('span', {}, [text])]);
            node.insertBefore(item, node.lastChild);
        };
        const tell = () => node.dispatchEvent(new Event('change', { bubbles: true }));
        const take = () => {
            if (input.value) add(input.value);
            input.value = '';
            tell();
        };
        input.addEventListener('keydown', (ev) => { if (ev.key === 'Enter') { ev.preventDefault(); take(); } });
        node.append(E('div', { 'class': 'add-item' }, [input, E('button', { 'type': 'button', 'class': 'btn cbi-button cbi-button-add', 'click': take }, ['+'])]));
        [].concat(value ?? []).forEach(add);
        return this.keep(sid, node, () => [...node.querySelectorAll('.item')].map((item) => item.dataset.value));
    },
});

const MultiValue = AbstractValue.extend({
    renderWidget(sid, value) {
        const node = E('div', { 'id': idOf(this, sid) }, this.keylist.map((key, place) => E('label', {}, [
            E('input', { 'type': 'checkbox', 'value': key, 'checked': [].concat(value ?? []).includes(key) ? '' : null }), this.vallist[place]])));
        return this.keep(sid, node, () => [...node.querySelectorAll(':checked')].map((one) => one.value));
    },
});

const DummyValue = AbstractValue.extend({ parse() {}, renderField() { return E('div'); } });

const NamedSection = Base.extend({
    __init__(map, sid, type, title, description) {
        Object.assign(this, { map, sid, sectiontype: type, title, description, children: [], tabs: [] });
    },
    cfgsections() {
        return uci.get('tproxyd', this.sid) ? [this.sid] : [];
    },
    tab(name, title) {
        this.tabs.push([name, title]);
    },
    option(Type, name, title, description) {
        const option = new Type(this.map, this, name, title, description);
        this.children.push(option);
        return option;
    },
    taboption(tab, ...args) {
        return Object.assign(this.option(...args), { tab });
    },
    showActive(sid) {
        for (const option of this.children) {
            const row = document.getElementById(`cbi-tproxyd-${sid}-${option.option}`);
            if (row) row.style.display = option.isActive(sid) ? '' : 'none';
        }
    },
    renderRow(option, sid) {
        const help = option.description ? [E('div', { 'class': 'cbi-value-description' }, option.description)] : [];
        return E('div', { 'class': 'cbi-value', 'id': `cbi-tproxyd-${sid}-${option.option}` }, [
            E('label', { 'class': 'cbi-value-title', 'for': `widget.${idOf(option, sid)}` }, option.title), option.renderField(sid), ...help]);
    },
    renderFields(sid) {
        const groups = this.tabs.length ? this.tabs : [[undefined, null]];
        return groups.map(([name, title]) => E('fieldset', {}, [title ? E('legend', {}, [title]) : '',
            ...this.children.filter((option) => option.tab === name && option.modalonly !== false).map((option) => this.renderRow(option, sid))]));
    },
    render() {
        return E('div', { 'class': 'cbi-section' }, [E('h3', {}, [this.title ?? '']), ...this.cfgsections().flatMap((sid) => this.renderFields(sid))]);
    },
});

const GridSection = NamedSection.extend({
    __init__(map, type, title, description) {
        Object.assign(this, { map, sectiontype: type, title, description, children: [], tabs: [] });
    },
    cfgsections() {
        return uci.sections('tproxyd', this.sectiontype).map((section) => section['.name']);
    },
    addModalOptions() {},
    handleAdd(name) {
        const sid = uci.add('tproxyd', this.sectiontype, this.anonymous ? null : name);
        this.adding = sid;
        return this.edit(sid);
    },
    handleRemove(sid) {
        uci.remove('tproxyd', sid);
        return this.map.reset();
    },
    async edit(sid) {
        const map = new Map_('tproxyd');
        const section = map.section(NamedSection, sid, this.sectiontype);
        section.tabs = this.tabs;
        for (const one of this.children) {
            if (one.modalonly === false) continue;
            const option = section.taboption(one.tab, one.constructor, one.option, one.title, one.description);
            for (const name in one) if (!['map', 'section', 'widgets'].includes(name)) option[name] = one[name];
        }
        await this.addModalOptions(section, sid);
        const node = await map.render();
        const close = (save) => async () => {
            if (save) map.parse();
            else if (this.adding === sid) uci.remove('tproxyd', sid);
            this.adding = null;
            ui.hideModal();
            await this.map.reset();
        };
        ui.showModal(this.modaltitle(sid), [node, E('div', { 'class': 'button-row' }, [
            E('button', { 'class': 'btn', 'click': ui.createHandlerFn(this, close(false)) }, [_('Dismiss')]),
            E('button', { 'class': 'btn', 'click': ui.createHandlerFn(this, close(true)) }, [_('Save')])])]);
        section.showActive(sid);
    },
    move(sid, step) {
        const all = this.cfgsections();
        const to = all[all.indexOf(sid) + step];
        if (to) uci.move('tproxyd', sid, to, step > 0);
        return this.map.reset();
    },
    render() {
        const columns = this.children.filter((option) => option.modalonly === false);
        const button = (words, act) => E('button', { 'class': 'btn cbi-button', 'type': 'button', 'disabled': this.map.readonly ? '' : null, 'click': ui.createHandlerFn(this, act) }, [words]);
        const rows = this.cfgsections().map((sid) => E('tr', { 'class': 'tr cbi-section-table-row', 'id': `cbi-tproxyd-${sid}`, 'data-sid': sid }, [
            ...(this.anonymous ? [] : [E('td', { 'class': 'td' }, [sid])]),
            ...columns.map((option) => E('td', { 'class': 'td', 'data-title': option.title }, [option.editable ? option.renderField(sid) : option.textvalue(sid)])),
            E('td', { 'class': 'td cbi-section-actions' }, [...(this.sortable ? [button('↑', () => this.move(sid, -1)), button('↓', () => this.move(sid, 1))] : []),
                button(_('Edit'), () => this.edit(sid)), button(_('Delete'), (ev) => this.handleRemove(sid, ev))])]));
        const name = E('input', { 'type': 'text', 'class': 'cbi-section-create-name', 'aria-label': _('Name') });
        return E('div', { 'class': 'cbi-section', 'id': `cbi-tproxyd-${this.sectiontype}` }, [E('h3', {}, [this.title ?? '']),
            E('table', { 'class': 'table cbi-section-table' }, rows),
            E('div', { 'class': 'cbi-section-create' }, [...(this.anonymous ? [] : [name]), button(this.addbtntitle, () => this.handleAdd(name.value))])]);
    },
});

const maps = [];
const Map_ = Base.extend({
    __init__(config, title, description) {
        Object.assign(this, { config, title, description, children: [], readonly: !env.mayWrite });
    },
    section(Type, ...args) {
        const section = new Type(this, ...args);
        this.children.push(section);
        return section;
    },
    async render() {
        await uci.load();
        return this.renderContents();
    },
    async renderContents() {
        this.root ??= E('div', { 'class': 'cbi-map', 'id': 'cbi-tproxyd' });
        this.root.replaceChildren(E('h2', {}, [this.title ?? '']), E('div', { 'class': 'cbi-map-descr' }, [this.description ?? '']), ...this.children.map((section) => section.render()));
        return this.root;
    },
    parse() {
        for (const section of this.children) for (const sid of section.cfgsections()) for (const option of section.children) option.parse(sid);
    },
    reset() {
        return this.renderContents();
    },
    async save(then, silent) {
        this.parse();
        await then?.();
        if (!silent) await uci.save();
        await this.renderContents();
    },
});

const form = { Map: Map_, NamedSection, GridSection, Value, ListValue, Flag, DynamicList, MultiValue, DummyValue };

// ---- view and loader

const view = Base.extend({
    load() {},
    async handleSave() {
        for (const map of maps) await map.save();
    },
    async handleSaveApply() {
        await this.handleSave();
        await ui.changes.apply();
    },
    async handleReset() {
        for (const map of maps) await map.reset();
    },
    async __render__() {
        const place = document.getElementById('view');
        place.replaceChildren(await this.render(await this.load()));
        const button = (words, act) => E('button', { 'class': 'btn', 'disabled': env.mayWrite ? null : '', 'click': ui.createHandlerFn(this, act) }, [words]);
        if (this.handleSave) place.append(E('div', { 'class': 'cbi-page-actions' }, [button(_('Save & Apply'), 'handleSaveApply'), button(_('Save'), 'handleSave'), button(_('Reset'), 'handleReset')]));
        document.body.dataset.ready = 'yes';
    },
});

const renderMap = Map_.prototype.render;
const modules = { baseclass: Base, view, form: { ...form, Map: Map_.extend({ render() { maps.push(this); return renderMap.call(this); } }) }, ui, uci, rpc, fs, poll };
const loading = {};

// Only what LuCI itself has is here; a page's own modules come from its own files.
function load(name) {
    if (modules[name]) return Promise.resolve(modules[name]);
    return (loading[name] ??= (async () => {
        const response = await fetch(`/luci-static/resources/${name.replaceAll('.', '/')}.js`);
        if (!response.ok) throw new Error(`the stand-in has no module ${name}`);
        const source = await response.text();
        const needs = [...source.matchAll(/^'require ([\w.]+)(?: as (\w+))?';$/gm)].map(([, path, alias]) => [path, alias ?? path.split('.').pop()]);
        const given = await Promise.all(needs.map(([path]) => load(path)));
        const Made = new Function('L', 'E', '_', 'N_', ...needs.map(([, alias]) => alias), `${source}\n//# sourceURL=${name}.js`)(L, E, _, N_, ...given);
        return new Made();
    })());
}

load(`view.${env.view.replaceAll('/', '.')}`).then((page) => page.__render__()).catch((error) => {
    document.getElementById('view').replaceChildren(E('pre', { 'class': 'alert-message' }, [String(error.stack)]));
    throw error;
});

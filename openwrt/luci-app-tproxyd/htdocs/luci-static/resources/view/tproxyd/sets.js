'use strict';
'require view';
'require form';
'require uci';
'require tproxyd.daemon as daemon';
'require tproxyd.fields as fields';
'require tproxyd.model as model';
'require tproxyd.parts as parts';

function showStatus(status) {
	for (const section of uci.sections('tproxyd', 'set')) {
		const loaded = (status.sets ?? []).find((one) => one.name === section['.name']);

		fields.fill('loaded', section['.name'], (loaded?.entries == null) ? '–' : String(loaded.entries));
		fields.fill('age', section['.name'], (loaded?.age_s == null) ? '–' : model.duration(loaded.age_s));
		fields.fill('trouble', section['.name'], loaded?.update_error ?? '');
	}
}

function updateNow(place) {
	parts.replace(place, E('em', {}, [ _('Fetching the lists…') ]));

	return daemon.updateSets().then((result) => parts.replace(place,
		parts.badge(result.code === 0 ? 'ok' : 'fail', result.code === 0 ? _('done') : _('failed')), ' ',
		E('span', { 'style': 'white-space: pre-line' }, [ (result.error || result.text).trim() ])));
}

return view.extend({
	load: () => uci.load('tproxyd'),

	render() {
		const map = new form.Map('tproxyd', _('Sets'),
			_('Lists of networks or names that rules refer to as @name: written here, in files, or fetched from an address.'));
		const told = E('p', { 'role': 'status', 'aria-live': 'polite' }, [ '' ]);

		const section = map.section(form.GridSection, 'set');

		section.addremove = true;
		section.anonymous = false;
		section.nodescriptions = true;
		section.addbtntitle = _('Add a set');
		section.modaltitle = (sid) => _('Set') + ': ' + sid;
		section.tab('general', _('General'));
		section.tab('source', _('Where it comes from'));
		parts.judgeDialog(section);

		const remove = section.handleRemove;

		section.handleRemove = function(sid, ev) {
			const users = model.usesOfSet(daemon.sections(), sid);

			return fields.confirmRemoval('@' + sid, users.map((user) => '%s %s'.format(user['.type'], fields.called(user))),
				_('If you delete it, these have to be changed by hand before the configuration is valid again.'),
				() => remove.call(this, sid, ev));
		};

		fields.shown(section, 'title', _('Name for people'), (set) => set.label ?? '');
		fields.shown(section, 'kind', _('Type'), (set) => (set.type === 'domain') ? _('names') : _('networks'));
		fields.shown(section, 'written', _('Written here'), (set) => String(model.values(set.entry).length));
		fields.shown(section, 'source', _('From'), (set) => set.url ?? model.values(set.loadfile).join(', '));
		fields.shown(section, 'loaded', _('Entries'), () => '…');
		fields.shown(section, 'age', _('Age'), () => '…');
		fields.shown(section, 'trouble', _('Last update'), () => '');

		fields.add(section, 'general', form.Value, 'label', _('Name for people'));
		const type = fields.add(section, 'general', form.ListValue, 'type', _('Type'), null, { default: 'net' });

		type.value('net', _('networks'));
		type.value('domain', _('names'));
		fields.add(section, 'general', form.DynamicList, 'entry', _('Entries'), null, {
			validate: (sid, value) => model.looksLike(type.formvalue(sid) === 'domain' ? 'domain' : 'address', value)
		});
		fields.add(section, 'source', form.DynamicList, 'loadfile', _('Files'), _('Paths of files with one entry in each line.'));
		fields.add(section, 'source', form.Value, 'url', _('Address of a list'), _('Fetched by “update now” and on time.'),
			{ placeholder: 'https://lists.example/list.txt' });
		fields.add(section, 'source', form.Value, 'update_interval', _('Fetched every'), null, fields.like('duration', { placeholder: '1d' }));
		fields.add(section, 'source', form.Flag, 'strict', _('Refuse bad lines'), _('Else they are skipped and counted.'), { default: '1' });

		const refresh = parts.watch(daemon.status, showStatus);

		return map.render().then((node) => {
			window.setTimeout(refresh, 0);

			return E('div', {}, [
				parts.style(), node,
				parts.button(_('Update now'), 'action', () => updateNow(told)),
				told,
				parts.judge(map)
			]);
		});
	}
});

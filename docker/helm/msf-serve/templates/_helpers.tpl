{{- define "msf.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* (list $ "server"): labels that select the pods of a component */}}
{{- define "msf.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "msf.labels" -}}
{{ include "msf.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- end }}

{{- /* (list $ .Values.server.image) */}}
{{- define "msf.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "msf.redisSecret" -}}
{{ .Values.redis.existingSecret | default (printf "%s-redis" (include "msf.name" .)) }}
{{- end }}

{{- define "msf.redisUrl" -}}
{{- if .Values.redis.enabled -}}
redis://msf@{{ include "msf.name" . }}-redis:6379/0
{{- else -}}
{{ required "redis.url is required with redis.enabled=false; allowed: redis://, rediss://, redis-cluster://, rediss-cluster://, redis-sentinel://" .Values.redis.url }}
{{- end }}
{{- end }}

{{- /* What every pod of ours has. (list $ "server" uid) */}}
{{- define "msf.podDefaults" -}}
{{- $uid := index . 2 -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with (index . 0).Values.imagePullSecrets }}
imagePullSecrets: {{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
securityContext: {runAsNonRoot: true, runAsUser: {{ $uid }}, runAsGroup: {{ $uid }}, fsGroup: {{ $uid }}, fsGroupChangePolicy: OnRootMismatch, seccompProfile: {type: RuntimeDefault}}
{{- end }}

{{- define "msf.containerSecurity" -}}
{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end }}

{{- /* Settings of a component. (list $ .Values.server.env) */}}
{{- define "msf.env" -}}
- {name: MSF_REDIS_URL, value: {{ include "msf.redisUrl" (index . 0) | quote }}}
- {name: MSF_REDIS_PASSWORD_FILE, value: /run/credentials/password}
{{- range $name, $value := index . 1 }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- /* (list $ "password"): volume with one key of Redis's secret */}}
{{- define "msf.credentials" -}}
- name: credentials
  secret: {secretName: {{ include "msf.redisSecret" (index . 0) }}, defaultMode: 0440, items: [{key: {{ index . 1 }}, path: {{ index . 1 }}}]}
{{- end }}

{{- /* (list $ "server" .Values.server): nodes, different ones and in different zones where there is room */}}
{{- define "msf.placement" -}}
{{- $values := index . 2 -}}
{{- with $values.nodeSelector -}}
nodeSelector: {{- toYaml . | nindent 2 }}
{{ end }}
{{- with $values.tolerations -}}
tolerations: {{- toYaml . | nindent 2 }}
{{ end -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "msf.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}

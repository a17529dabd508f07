{{- define "gotohotel.name" -}}
{{- $release := regexReplaceAll "^[^a-z]+" (.Release.Name | replace "." "-") "" -}}
{{- if contains "gotohotel" $release -}}{{ $release | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-gotohotel" ($release | trunc 29 | trimSuffix "-") | trimPrefix "-" }}{{- end -}}
{{- end }}

{{- /* Labels of a part: (list $ "order"). */ -}}
{{- define "gotohotel.selector" -}}
app.kubernetes.io/name: gotohotel
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "gotohotel.labels" -}}
{{ include "gotohotel.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Values.image.tag | default (index . 0).Chart.AppVersion | trunc 63 | trimAll "_.-" | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- /* An image of ours: (list $ "order"). */ -}}
{{- define "gotohotel.image" -}}
{{- $values := (index . 0).Values.image -}}
{{- with $values.registry }}{{ . }}/{{ end }}gotohotel-{{ index . 1 }}:{{ $values.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{- define "gotohotel.secret" -}}
{{- .Values.secrets.existingSecret | default (printf "%s-secrets" (include "gotohotel.name" .)) -}}
{{- end }}

{{- /* The Secret with a part's certificate: (list $ "order"). */ -}}
{{- define "gotohotel.certificate" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.certificates.mode "existing" -}}
{{ required "certificates.existingSecretPrefix is needed with existing certificates" $root.Values.certificates.existingSecretPrefix }}-{{ index . 1 }}
{{- else -}}
{{ include "gotohotel.name" $root }}-tls-{{ index . 1 }}
{{- end -}}
{{- end }}

{{- define "gotohotel.postgres" -}}
{{- if .Values.postgres.builtin.enabled -}}{{ include "gotohotel.name" . }}-postgres:5432
{{- else -}}{{ required "postgres.external.host is needed without the built-in PostgreSQL" .Values.postgres.external.host }}:{{ .Values.postgres.external.port }}{{- end -}}
{{- end }}

{{- define "gotohotel.postgresOptions" -}}
{{- if .Values.postgres.builtin.enabled -}}sslmode=disable{{- else -}}{{ .Values.postgres.external.options }}{{- end -}}
{{- end }}

{{- define "gotohotel.natsScheme" -}}
{{- if and (not .Values.nats.builtin.enabled) .Values.nats.external.tls -}}tls{{- else -}}nats{{- end -}}
{{- end }}

{{- define "gotohotel.nats" -}}
{{- if .Values.nats.builtin.enabled -}}{{ include "gotohotel.name" . }}-nats:4222
{{- else -}}{{ required "nats.external.host is needed without the built-in NATS" .Values.nats.external.host }}:{{ .Values.nats.external.port }}{{- end -}}
{{- end }}

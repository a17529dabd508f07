{{- define "gotohotel.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "gotohotel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "gotohotel.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ range . }}
  - name: {{ . }}{{ end }}
{{- end }}
{{- end }}

{{- /* What the pods of our images share: (list $ "order"). */ -}}
{{- define "gotohotel.pod" -}}
serviceAccountName: {{ include "gotohotel.name" (index . 0) }}-{{ index . 1 }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- include "gotohotel.pullSecrets" (index . 0) }}
securityContext: {{ include "gotohotel.podSecurity" (index . 0) | nindent 2 }}
{{- end }}

{{- define "gotohotel.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "gotohotel.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{- /* An environment variable from the Secret: (list $ "VARIABLE" "key"). */ -}}
{{- define "gotohotel.fromSecret" -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ include "gotohotel.secret" (index . 0) }}, key: {{ index . 2 }}}}
{{- end }}

{{- /* The environment and the volumes of the operator's commands. */ -}}
{{- define "gotohotel.operatorEnvironment" -}}
- {name: GOTOHOTEL_SECRETS, value: /etc/gotohotel/secrets}
- {name: GOTOHOTEL_HOME, value: /var/lib/gotohotel}
- {name: GOTOHOTEL_POSTGRES_URL, value: {{ printf "postgresql://%s?%s" (include "gotohotel.postgres" .) (include "gotohotel.postgresOptions" .) | quote }}}
- {name: GOTOHOTEL_NATS_URL, value: "{{ include "gotohotel.natsScheme" . }}://{{ include "gotohotel.nats" . }}"}
- {name: GOTOHOTEL_GATEWAY_URL, value: "{{ if .Values.gateway.tlsSecret }}https{{ else }}http{{ end }}://{{ include "gotohotel.name" . }}-gateway:{{ .Values.gateway.service.port }}"}
- {name: GOTOHOTEL_STREAM_MIB, value: {{ .Values.nats.streamMiB | int | quote }}}
- {name: GOTOHOTEL_STREAM_REPLICAS, value: {{ .Values.nats.streamReplicas | int | quote }}}
{{- with .Values.mypage.settings.MYPAGE_STORE }}
- {name: MYPAGE_STORE, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "gotohotel.operatorMounts" -}}
- {name: secrets, mountPath: /etc/gotohotel/secrets, readOnly: true}
- {name: home, mountPath: /var/lib/gotohotel}
{{- include "gotohotel.authorityMount" . }}
{{- end }}

{{- define "gotohotel.operatorVolumes" -}}
- name: secrets
  secret: {secretName: {{ include "gotohotel.secret" . }}, defaultMode: 0440}
{{- include "gotohotel.authorityVolume" . }}
{{- end }}

{{- /* For commands that only call the gateway. */ -}}
{{- define "gotohotel.callerMounts" -}}
- {name: secrets, mountPath: /etc/gotohotel/secrets, readOnly: true}
- {name: home, mountPath: /var/lib/gotohotel}
{{- end }}

{{- define "gotohotel.callerVolumes" -}}
- name: secrets
  secret: {secretName: {{ include "gotohotel.secret" . }}, defaultMode: 0440, items: [{key: token_key, path: token_key}]}
{{- end }}

{{- /* The authority of an external PostgreSQL's certificate. */ -}}
{{- define "gotohotel.authorityMount" -}}
{{- if and (not .Values.postgres.builtin.enabled) .Values.postgres.external.authoritySecret }}
- {name: postgres-authority, mountPath: /etc/gotohotel/postgres, readOnly: true}
{{- end }}
{{- end }}

{{- define "gotohotel.authorityVolume" -}}
{{- if and (not .Values.postgres.builtin.enabled) .Values.postgres.external.authoritySecret }}
- name: postgres-authority
  secret: {secretName: {{ .Values.postgres.external.authoritySecret }}, defaultMode: 0444}
{{- end }}
{{- end }}

{{- define "gotohotel.hpa" -}}
{{- $root := index . 0 }}{{ $part := index . 1 }}{{ $scaling := (index $root.Values $part).autoscaling -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) }}{{ fail (printf "%s.autoscaling.minReplicas is more than maxReplicas" $part) }}{{ end -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "gotohotel.name" $root }}-{{ $part }}
  labels: {{ include "gotohotel.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "gotohotel.name" $root }}-{{ $part }}}
  minReplicas: {{ $scaling.minReplicas }}
  maxReplicas: {{ $scaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ $scaling.targetCPUUtilizationPercentage }}}}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ $scaling.scaleDownStabilizationSeconds }}
      policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}

{{- define "gotohotel.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "gotohotel.name" (index . 0) }}-{{ index . 1 }}
  labels: {{ include "gotohotel.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{ include "gotohotel.selector" . | nindent 6 }}
{{- end }}

{{- define "gotohotel.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "gotohotel.name" (index . 0) }}-{{ index . 1 }}
  labels: {{ include "gotohotel.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

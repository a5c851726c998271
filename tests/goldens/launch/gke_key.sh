gcloud container node-pools create keyed --cluster=adx --project=my-project --location=us-west4 --machine-type=ct5lp-hightpu-4t --num-nodes=4 --tpu-topology=4x4 --spot --boot-disk-kms-key=projects/p/locations/us-central1/keyRings/r/cryptoKeys/k --labels=app=adx,adx-job=poe --node-locations=us-west4-a
gcloud container clusters get-credentials adx --project=my-project --location=us-west4
kubectl apply --filename=- <<'END_OF_INPUT'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: poe
  namespace: default
  labels:
    app: adx
    adx-job: poe
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      metadata:
        labels:
          app: adx
          adx-job: poe
      spec:
        completionMode: Indexed
        completions: 4
        parallelism: 4
        podFailurePolicy:
          rules:
          - action: Count
            onPodConditions:
            - type: DisruptionTarget
              status: 'True'
          - action: FailJob
            onExitCodes:
              operator: NotIn
              values:
              - 74
              - 75
        template:
          metadata:
            labels:
              app: adx
              adx-job: poe
          spec:
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
              cloud.google.com/gke-tpu-topology: 4x4
              cloud.google.com/gke-spot: 'true'
              cloud.google.com/gke-nodepool: keyed
            serviceAccountName: runner
            restartPolicy: Never
            terminationGracePeriodSeconds: 60
            automountServiceAccountToken: false
            containers:
            - name: adx
              image: us-docker.pkg.dev/my-project/adx/run:1
              args:
              - launch.parent
              - --
              - --config=configs/smollm2_poe.py
              - --workdir=gs://bucket/poe
              - --set=limit=64
              - --distributed
              env: []
              resources:
                limits:
                  google.com/tpu: '4'
                requests:
                  google.com/tpu: '4'
        backoffLimit: 0
  failurePolicy:
    maxRestarts: 10
    rules:
    - name: final
      action: FailJobSet
      onJobFailureReasons:
      - PodFailurePolicy
END_OF_INPUT

gcloud compute instance-templates create adx-poe --project=my-project --machine-type=g2-standard-4 --maintenance-policy=TERMINATE --provisioning-model=SPOT --image-project=batch-custom-image --image-family=batch-cos-stable-official --boot-disk-size=100GB --boot-disk-kms-key=projects/p/locations/us-central1/keyRings/r/cryptoKeys/k --labels=app=adx,adx-job=poe
gcloud batch jobs submit poe --config=- --project=my-project --location=us-central1 <<'END_OF_INPUT'
{
  "taskGroups": [
    {
      "taskSpec": {
        "runnables": [
          {
            "container": {
              "imageUri": "us-docker.pkg.dev/my-project/adx/run:1",
              "commands": [
                "launch.run",
                "--config=configs/smollm2_poe.py",
                "--workdir=gs://bucket/poe",
                "--set=limit=64"
              ]
            }
          }
        ],
        "environment": {
          "variables": {},
          "secretVariables": {}
        },
        "maxRetryCount": 10,
        "lifecyclePolicies": [
          {
            "action": "RETRY_TASK",
            "actionCondition": {
              "exitCodes": [
                74,
                75,
                50001,
                50003
              ]
            }
          }
        ]
      },
      "taskCount": 2,
      "parallelism": 2,
      "taskCountPerNode": 1
    }
  ],
  "allocationPolicy": {
    "location": {
      "allowedLocations": [
        "regions/us-central1"
      ]
    },
    "instances": [
      {
        "instanceTemplate": "adx-poe",
        "installGpuDrivers": true
      }
    ],
    "labels": {
      "app": "adx",
      "adx-job": "poe"
    },
    "serviceAccount": {
      "email": "runner@my-project.iam.gserviceaccount.com"
    }
  },
  "labels": {
    "app": "adx",
    "adx-job": "poe"
  },
  "logsPolicy": {
    "destination": "CLOUD_LOGGING"
  }
}
END_OF_INPUT
